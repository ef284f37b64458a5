"""Writers to other formats, one ``to_*`` each."""

"""The one function of ml_collections.config_flags that is used."""
from typing import Any

def DEFINE_config_file(name: str, default: str | None = ..., help_string: str = ...) -> Any: ...

"""Files that programs write (writing.py) and those that they read, which may be a stranger's (reading.py); records with
a checksum (checked.py)."""

from train.files.checked import CHECKSUM, read_record, with_checksum, without_checksum, write_record
from train.files.reading import MOST_JSON, parse_json, read_bytes, read_json, read_text, within
from train.files.writing import (
    check_new,
    check_no_links,
    check_replaceable,
    locked,
    open_own,
    to_json,
    whole_file,
    whole_folder,
    write_whole,
    writing,
)

__all__ = [
    "CHECKSUM",
    "MOST_JSON",
    "check_new",
    "check_no_links",
    "check_replaceable",
    "locked",
    "open_own",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_record",
    "read_text",
    "to_json",
    "whole_file",
    "whole_folder",
    "with_checksum",
    "within",
    "without_checksum",
    "write_record",
    "write_whole",
    "writing",
]

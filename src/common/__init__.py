"""What all programs share; import the names from here."""

# fmt: off
from common.files import (
    check_outside, decode_text, first_free, guard_writes, link, lock, own_name, remove_partial, short_name, write_json,
    write_whole,
)
from common.program import (
    ArgumentParser, StopRequest, Terminated, UserError, add_verbose, available_cores, check_least, command, drop_output,
    hush_runs, own_file, require_packages, run_program, say, show_notes,
)
from common.text import (
    align, display_width, first_line, list_counts, list_first, markdown_table, pad, pluralise, printable, readable_size,
)

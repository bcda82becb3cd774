"""What all programs share; import the names from here."""

# fmt: off
from common.files import (
    base_name, check_before_writes, check_outside, decode_text, first_unused, link, lock, remove_partial, short_name,
    write_atomically, write_json,
)
from common.program import (
    ArgumentParser, StopRequest, Terminated, UserError, add_verbose, available_cores, check_minimum, command,
    discard_output, print_step, repository_path, require_packages, run_program, set_verbosity, show_notes,
)
from common.text import (
    align, display_width, first_line, list_counts, list_first, markdown_table, pad, pluralise, printable, readable_size,
)

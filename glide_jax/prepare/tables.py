"""Records of parquet files: a column of images, and one of captions."""

from collections.abc import Iterator
from typing import Any

from glide_jax.data.folder_index import MAX_CAPTIONS_BYTES
from glide_jax.data.records import BadRecordError, Record
from glide_jax.images import MAX_FILE_BYTES
from glide_jax.prepare.units import Keys, Unit, first_line, make_record, open_input

MAX_BATCH_ROWS = 8
"""Rows that are decoded at once: a file of few bytes can repeat one large value in all of them."""
BATCH_BYTES = 2**28
"""Approximate size of the rows that are decoded at once."""


def read_metadata(file: str) -> Any:
    """The metadata of a parquet file.

    Raises:
        BadRecordError: it is damaged.
        OSError: it cannot be read.
    """
    import pyarrow.parquet as pq

    try:
        with open_input(file) as opened:
            metadata = pq.ParquetFile(opened).metadata
            metadata.schema.to_arrow_schema()
            return metadata
    except Exception as error:  # pyarrow raises many types on malformed metadata
        if isinstance(error, OSError) and error.errno:
            raise
        raise BadRecordError(f"{file}: cannot read as parquet: {first_line(error)}") from None


def read_table(unit: Unit, keys: Keys) -> Iterator[Record | BadRecordError]:
    """Yields the records of some row groups. The damaged rest of one is one further problem."""
    import pyarrow.parquet as pq

    columns = [keys.image_column, keys.caption_column]
    # Without a buffer, a complete row group would be read into memory.
    with open_input(unit.path) as file, pq.ParquetFile(file, buffer_size=2**20) as table:
        for group in unit.groups:
            about = table.metadata.row_group(group)
            row, where = 0, f"{unit.path} row group {group}"
            row_bytes = about.total_byte_size // max(1, about.num_rows)
            batch_rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // max(1, row_bytes)))
            try:
                for batch in table.iter_batches(batch_rows, row_groups=[group], columns=columns):
                    for place in range(batch.num_rows):
                        yield _read_row(batch, place, keys, f"{where} row {row}")
                        row += 1
            except Exception as error:  # pyarrow raises many types on malformed pages
                if isinstance(error, OSError) and error.errno:
                    raise  # of the disk or the network, and possibly temporary
                why = f"{first_line(error)}; {about.num_rows - row} rows are lost"
                yield BadRecordError(f"{where}: damaged after {row} rows ({why})")


def _read_row(batch: Any, row: int, keys: Keys, name: str) -> Record | BadRecordError:
    try:
        captions = _value(batch.column(keys.caption_column), row, MAX_CAPTIONS_BYTES)
        image = _value(_encoded(batch.column(keys.image_column)), row, MAX_FILE_BYTES)
        return make_record(image, captions, name)
    except BadRecordError as error:
        return error
    except Exception as error:  # texts that are not UTF-8, dates without a Python equivalent
        return BadRecordError(f"{name}: {first_line(error)}")


def _encoded(column: Any) -> Any:
    """The bytes of a column of {bytes, path}, without the path, which may be no valid text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        return pc.struct_field(column, "bytes")
    return column


def _value(column: Any, row: int, max_bytes: int) -> Any:
    """A Python value of bounded size."""
    import pyarrow as pa

    one = column.slice(row, 1)
    if pa.types.is_dictionary(one.type):
        one = one.dictionary_decode()
    if one.nbytes > max_bytes + 64:  # of offsets and validity
        raise ValueError(f"a value is larger than {max_bytes / 1e6:,.0f} MB")
    return one[0].as_py()

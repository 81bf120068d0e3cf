//! Rows as Parquet, for DuckDB, Spark and DataFusion.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use ::parquet::basic::{Compression, LogicalType, Repetition, Type as Physical, ZstdLevel};
use ::parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use ::parquet::schema::types::Type;

use super::row::{Format, Row};
use super::table::{COLUMNS, Cell, Column};
use crate::error::{Code, Error, Result};
use crate::fs::{AtomicFile, Existing};
use crate::store::Backend;

/// Rows of a row group: what is held in memory as columns at a time, one column at a time.
const GROUP_ROWS: usize = 1 << 16;

type Parquet<T> = std::result::Result<T, ParquetError>;

/// Writes the rows as a Parquet file, atomically; see [`parquet()`]. A path may be a URL of an object
/// store (`s3://`, `gs://`, `az://`), as [`Backend::open`] takes them.
///
/// # Errors
/// [`Code::OutputExists`], [`Code::NoSpace`], [`Code::Io`]; [`Code::StoreUrl`],
/// [`Code::StoreBackend`].
pub fn write_parquet(path: &Path, rows: &[Row], existing: Existing) -> Result<()> {
    let address = path.to_string_lossy();
    if let (true, Some((folder, name))) = (address.contains("://"), address.rsplit_once('/')) {
        let mut bytes = Vec::new();
        parquet(rows, &mut bytes)?;
        let backend = Backend::open(folder)?;
        if existing == Existing::Replace {
            return backend.replace(name, bytes);
        }
        return match backend.create(name, bytes)? {
            true => Ok(()),
            false => Err(Error::output_exists(path)),
        };
    }
    let out = AtomicFile::create(path, existing)?;
    parquet(rows, out.file()?).map_err(|e| e.file(path))?;
    out.commit(true)
}

/// Writes the rows as Parquet: the columns of [`COLUMNS`], each OPTIONAL (what is unknown is null),
/// text as BYTE_ARRAY (String), counts and bytes as INT64, numbers as DOUBLE; zstd, row groups of
/// 65,536 rows. Counts beyond INT64 become its largest value. The same rows give the same bytes.
///
/// # Errors
/// [`Code::NoSpace`] and [`Code::Io`] where the writer fails.
pub fn parquet(rows: &[Row], writer: impl Write + Send) -> Result<()> {
    write(rows, writer).map_err(|e| match e {
        ParquetError::External(cause) => match cause.downcast::<std::io::Error>() {
            Ok(io) if io.kind() == std::io::ErrorKind::StorageFull => {
                Error::new(Code::NoSpace, format!("cannot write Parquet: {io}"))
            }
            Ok(io) => Error::new(Code::Io, format!("cannot write Parquet: {io}")),
            Err(other) => Error::new(Code::Io, format!("cannot write Parquet: {other}")),
        },
        other => Error::new(Code::Io, format!("cannot write Parquet: {other}")),
    })
}

fn write(rows: &[Row], writer: impl Write + Send) -> Parquet<()> {
    let schema = KeyValue::new("schema".to_owned(), "tlkit-audit/1".to_owned());
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_created_by(concat!("tlkit ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(vec![schema]))
        .build();
    let mut file = SerializedFileWriter::new(writer, Arc::new(schema_of()?), Arc::new(properties))?;
    for rows in rows.chunks(GROUP_ROWS) {
        let mut group = file.next_row_group()?;
        for column in COLUMNS {
            let writer = group.next_column()?;
            let mut writer = writer.ok_or_else(|| ParquetError::General("no column".into()))?;
            write_column(&mut writer, column, rows)?;
            writer.close()?;
        }
        group.close()?;
    }
    file.close()?;
    Ok(())
}

/// A row of which nothing is known: each column's kind of cell tells its type.
fn typical() -> Row {
    Row::new("", Format::Peft)
}

fn schema_of() -> Parquet<Type> {
    let typical = typical();
    let column = |(name, cell): &Column| {
        let (physical, logical) = match cell(&typical) {
            Cell::Text(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
            Cell::Count(_) => (Physical::INT64, None),
            Cell::Number(_) => (Physical::DOUBLE, None),
        };
        let column = Type::primitive_type_builder(name, physical);
        let column = column
            .with_repetition(Repetition::OPTIONAL)
            .with_logical_type(logical);
        Ok(Arc::new(column.build()?))
    };
    let columns = COLUMNS.iter().map(column).collect::<Parquet<Vec<_>>>()?;
    Type::group_type_builder("adapter")
        .with_fields(columns)
        .build()
}

fn write_column(
    out: &mut SerializedColumnWriter<'_>,
    column: &Column,
    rows: &[Row],
) -> Parquet<()> {
    let cells = || rows.iter().map(column.1);
    match column.1(&typical()) {
        Cell::Text(_) => put::<ByteArrayType>(out, cells(), |cell| match cell {
            Cell::Text(text) => text.map(|t| ByteArray::from(t.into_owned().into_bytes())),
            _ => None,
        }),
        Cell::Count(_) => put::<Int64Type>(out, cells(), |cell| match cell {
            Cell::Count(count) => count.map(|n| i64::try_from(n).unwrap_or(i64::MAX)),
            _ => None,
        }),
        Cell::Number(_) => put::<DoubleType>(out, cells(), |cell| match cell {
            Cell::Number(number) => number,
            _ => None,
        }),
    }
}

/// Writes a column's values that are there, and for each row whether it has one.
fn put<'r, T: DataType>(
    out: &mut SerializedColumnWriter<'_>,
    cells: impl Iterator<Item = Cell<'r>>,
    value: impl Fn(Cell<'r>) -> Option<T::T>,
) -> Parquet<()> {
    let mut values = Vec::new();
    let mut there = Vec::new();
    for cell in cells {
        let value = value(cell);
        there.push(i16::from(value.is_some()));
        values.extend(value);
    }
    out.typed::<T>().write_batch(&values, Some(&there), None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use ::parquet::file::reader::{FileReader, SerializedFileReader};
    use ::parquet::record::Field;

    use super::*;
    use crate::audit::Problem;

    fn rows() -> Vec<Row> {
        let mut full = Row::new("a/<b>\u{1b}ü", Format::Peft);
        full.kind = Some("tl6".into());
        full.user = Some(String::new());
        full.rank = Some(8);
        full.alpha = Some(0.1);
        full.bytes = u64::MAX;
        full.waste.dtype = 7;
        let mut broken = Row::new("b", Format::Peft);
        broken.error = Some(Problem {
            code: "TL0101",
            message: "cut".into(),
        });
        vec![full, broken]
    }

    /// Breaks where a column's name, type, value or null is not what the rows say.
    #[test]
    fn reads_back_as_the_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        // More than one row group.
        let rows: Vec<Row> = rows().into_iter().cycle().take(GROUP_ROWS + 3).collect();
        write_parquet(&path, &rows, Existing::Refuse).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let reader = SerializedFileReader::new(file).unwrap();
        assert_eq!(reader.num_row_groups(), 2);
        let mut read = 0;
        for (found, row) in reader.get_row_iter(None).unwrap().zip(&rows) {
            let found = found.unwrap();
            let fields: Vec<_> = found.get_column_iter().collect();
            assert_eq!(fields.len(), COLUMNS.len());
            for ((name, field), (wanted, cell)) in fields.iter().zip(COLUMNS) {
                assert_eq!(name, wanted);
                let same = match (cell(row), field) {
                    (Cell::Text(Some(a)), Field::Str(b)) => a == b.as_str(),
                    (Cell::Count(Some(a)), Field::Long(b)) => a.min(i64::MAX as u64) == *b as u64,
                    (Cell::Number(Some(a)), Field::Double(b)) => a == *b,
                    (Cell::Text(None) | Cell::Count(None) | Cell::Number(None), Field::Null) => {
                        true
                    }
                    _ => false,
                };
                assert!(same, "{name}: {field:?}");
            }
            read += 1;
        }
        assert_eq!(read, rows.len());
    }

    /// Breaks where the bytes depend on more than the rows, an existing file is replaced unasked,
    /// or a file without rows has no schema.
    #[test]
    fn bytes_are_the_rows_alone() {
        let once = |rows: &[Row]| {
            let mut out = Vec::new();
            parquet(rows, &mut out).unwrap();
            out
        };
        assert_eq!(once(&rows()), once(&rows()));
        assert!(once(&[]).len() > 12);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        write_parquet(&path, &[], Existing::Refuse).unwrap();
        let again = write_parquet(&path, &rows(), Existing::Refuse).unwrap_err();
        assert_eq!(again.code(), Code::OutputExists);
        let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
        let schema = reader.metadata().file_metadata().schema_descr();
        assert_eq!(schema.num_columns(), COLUMNS.len());
    }
}

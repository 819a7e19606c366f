//! Products out of a file: JSON Lines, or CSV with a head line.
//!
//! In CSV, `images` and `related` are lists with `|` between, `attributes` is `Colour=Red|Size=M`; an empty cell is none.

use std::io::{BufRead, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::{CatalogError, NewProduct};

/// How products are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Lines,
    /// With a head line that names the fields.
    Csv,
}

impl Format {
    /// By the end of the file's name, otherwise by its first bytes.
    pub fn of(path: &Path, begin: &[u8]) -> Self {
        let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let name = name.trim_end_matches(".gz");
        if name.ends_with(".csv") {
            return Self::Csv;
        }
        if [".jsonl", ".ndjson", ".json"].iter().any(|end| name.ends_with(end)) {
            return Self::Lines;
        }
        let begin = begin.strip_prefix(b"\xef\xbb\xbf").unwrap_or(begin).trim_ascii_start();
        if begin.starts_with(b"{") { Self::Lines } else { Self::Csv }
    }
}

/// A product, or what is wrong, and the number of its line.
pub type Line = (u64, Result<NewProduct, String>);

/// The products of a file, one after the other.
pub enum Products<R: BufRead> {
    #[doc(hidden)]
    Lines { input: R, number: u64, line: Vec<u8> },
    #[doc(hidden)]
    Csv { input: Box<csv::Reader<R>>, heads: Vec<String> },
}

impl<R: BufRead> Products<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// When a CSV's head line cannot be read or names no `id`.
    pub fn read(input: R, format: Format) -> Result<Self, String> {
        Ok(match format {
            Format::Lines => Self::Lines { input, number: 0, line: Vec::new() },
            Format::Csv => {
                let mut input = csv::ReaderBuilder::new()
                    .flexible(true)
                    // With the default, lines that end in CR LF are counted one behind. Cells are trimmed anyway.
                    .terminator(csv::Terminator::Any(b'\n'))
                    .from_reader(input);
                let heads = input.headers().map_err(|error| format!("the head line cannot be read: {error}"))?;
                let clean = |head: &str| head.trim_start_matches('\u{feff}').trim().to_ascii_lowercase();
                let heads: Vec<String> = heads.iter().map(clean).collect();
                if !heads.iter().any(|head| head == "id") {
                    return Err(String::from("the head line of a CSV must name the fields, id among them"));
                }
                Self::Csv { input: Box::new(input), heads }
            }
        })
    }
}

impl<R: BufRead + Read> Iterator for Products<R> {
    /// An error of reading ends it.
    type Item = std::io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Lines { input, number, line } => loop {
                line.clear();
                match input.read_until(b'\n', line) {
                    Ok(0) => return None,
                    Ok(_) => *number += 1,
                    Err(error) => return Some(Err(error)),
                }
                let text = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line).trim_ascii();
                if !text.is_empty() {
                    let json = serde_json::from_slice(text).map_err(|error| format!("no JSON: {error}"));
                    return Some(Ok((*number, json.and_then(|json| one(&json)))));
                }
            },
            Self::Csv { input, heads } => {
                let mut record = csv::StringRecord::new();
                match input.read_record(&mut record) {
                    Ok(false) => None,
                    Ok(true) => {
                        let number = record.position().map_or(0, csv::Position::line);
                        Some(Ok((number, cells(heads, &record).and_then(|json| one(&json)))))
                    }
                    Err(error) => {
                        let number = error.position().map_or(0, csv::Position::line);
                        match error.into_kind() {
                            csv::ErrorKind::Io(error) => Some(Err(error)),
                            // It goes on behind the record.
                            csv::ErrorKind::Utf8 { .. } => Some(Ok((number, Err(String::from("it is no UTF-8"))))),
                            _ => Some(Ok((number, Err(String::from("it is no CSV"))))),
                        }
                    }
                }
            }
        }
    }
}

fn one(json: &Value) -> Result<NewProduct, String> {
    NewProduct::read(json).map_err(|error| match error {
        CatalogError::Invalid(_) => error.to_string().trim_start_matches(": ").to_owned(),
        other => other.to_string(),
    })
}

fn cells(heads: &[String], record: &csv::StringRecord) -> Result<Value, String> {
    if record.len() > heads.len() {
        return Err(format!("it has {} cells, and the head line {}", record.len(), heads.len()));
    }
    let mut map = Map::new();
    for (head, cell) in heads.iter().zip(record.iter()).filter(|(_, cell)| !cell.trim().is_empty()) {
        let parts = || cell.split('|').map(str::trim).filter(|part| !part.is_empty());
        let value = match head.as_str() {
            "images" | "related" => parts().map(Value::from).collect(),
            "attributes" => {
                let pair = |part: &str| {
                    let (name, value) = part.split_once('=').unwrap_or((part, ""));
                    serde_json::json!({"name": name.trim(), "value": value.trim()})
                };
                parts().map(pair).collect()
            }
            _ => Value::from(cell.trim()),
        };
        map.insert(head.clone(), value);
    }
    Ok(Value::Object(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, format: Format) -> Vec<Line> {
        Products::read(text.as_bytes(), format).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn both_formats_say_the_same() {
        let lines = "{\"id\":\"7\",\"name\":\"Shoe, red\",\"price\":\"19.90\",\"images\":[\"/a.webp\",\"/b.webp\"],\
                     \"attributes\":[{\"name\":\"Colour\",\"value\":\"Red\"}],\"related\":[\"8\"],\"stock\":3}\n\n";
        let table = "\u{feff}ID,name,price,images,attributes,related,stock,brand\r\n\
                     7,\"Shoe, red\",19.90,/a.webp|/b.webp,Colour=Red,8,3,\r\n";
        assert_eq!(Format::of(Path::new("x"), lines.as_bytes()), Format::Lines);
        assert_eq!(Format::of(Path::new("x"), table.as_bytes()), Format::Csv);
        assert_eq!(Format::of(Path::new("x.csv.gz"), b""), Format::Csv);
        let (a, b) = (read(lines, Format::Lines), read(table, Format::Csv));
        assert_eq!(a[0].1.as_ref().unwrap(), b[0].1.as_ref().unwrap());
        assert_eq!((a[0].0, b[0].0), (1, 2));
    }

    #[test]
    fn a_bad_line_is_named_and_the_next_is_read() {
        let text = "{\"id\":\"1\",\"name\":\"a\",\"price\":1}\n{oops\n{\"id\":\"2\",\"price\":\"x\"}\n[1]\n\
                    {\"id\":\"3\",\"name\":\"c\",\"price\":3}\n";
        let found: Vec<(u64, bool)> =
            read(text, Format::Lines).into_iter().map(|(line, product)| (line, product.is_ok())).collect();
        assert_eq!(found, [(1, true), (2, false), (3, false), (4, false), (5, true)]);
        let table = "id,name,price\n1,a,1\n2,b\n3,c,1,2\n4,d,4\n";
        let found: Vec<(u64, bool)> =
            read(table, Format::Csv).into_iter().map(|(line, product)| (line, product.is_ok())).collect();
        assert_eq!(found, [(2, true), (3, false), (4, false), (5, true)]);
        assert!(Products::read("name,price\n".as_bytes(), Format::Csv).is_err());
    }
}

//! Answers for people: names and values in lines, lists as tables. `--json` prints them as they came.

use std::fmt::Write as _;
use std::io::Write as _;

use indexmap::IndexMap;
use serde_json::value::RawValue;

use crate::error::{Exit, Failure};

/// Columns are no wider than this; what is longer is cut.
const MAX_COLUMN: usize = 48;

/// Prints, and takes a closed pipe (`faregate usage … | head`) for success.
pub(super) fn text(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    match write!(out, "{text}{newline}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Unavailable, format!("cannot write the answer: {error}")))
        }
        _ => Ok(()),
    }
}

/// An answer of the admin API: its fields in their order, its numbers as they were written.
pub(super) enum Tree {
    Object(IndexMap<String, Tree>),
    List(Vec<Tree>),
    Plain(String),
}

impl Tree {
    /// # Errors
    /// When the text is no JSON.
    pub(super) fn parse(text: &str) -> Result<Tree, serde_json::Error> {
        let text = text.trim();
        Ok(match text.as_bytes().first() {
            Some(b'{') => {
                let fields: IndexMap<String, Box<RawValue>> = serde_json::from_str(text)?;
                let tree = |(name, raw): (String, Box<RawValue>)| Ok((name, Tree::parse(raw.get())?));
                Tree::Object(fields.into_iter().map(tree).collect::<Result<_, serde_json::Error>>()?)
            }
            Some(b'[') => {
                let items: Vec<Box<RawValue>> = serde_json::from_str(text)?;
                Tree::List(items.iter().map(|raw| Tree::parse(raw.get())).collect::<Result<_, _>>()?)
            }
            // What came from users shall not steer the terminal.
            Some(b'"') => {
                let text: String = serde_json::from_str(text)?;
                Tree::Plain(text.chars().map(|char| if char.is_control() { '?' } else { char }).collect())
            }
            _ => Tree::Plain(if text == "null" { "-".to_owned() } else { text.to_owned() }),
        })
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        match self {
            Tree::Object(fields) => match fields.get("data") {
                Some(Tree::List(rows)) => page(rows, fields.get("next")),
                _ => lines(fields),
            },
            other => other.plain(),
        }
    }

    fn plain(&self) -> String {
        match self {
            Tree::Plain(text) => text.clone(),
            Tree::List(items) => items.iter().map(Tree::plain).collect::<Vec<_>>().join(", "),
            Tree::Object(_) => "…".to_owned(),
        }
    }
}

fn page(rows: &[Tree], next: Option<&Tree>) -> String {
    let mut out = if rows.is_empty() { "none\n".to_owned() } else { table(rows) };
    match next {
        Some(Tree::Plain(next)) if next != "-" => {
            let _ = writeln!(out, "\nmore: --cursor {next}");
        }
        _ => {}
    }
    out
}

fn lines(fields: &IndexMap<String, Tree>) -> String {
    let (mut found, mut tables) = (Vec::new(), String::new());
    collect("", fields, &mut found, &mut tables);
    let width = found.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    found.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect::<String>() + &tables
}

fn collect(prefix: &str, fields: &IndexMap<String, Tree>, found: &mut Vec<(String, String)>, tables: &mut String) {
    for (name, value) in fields {
        match value {
            Tree::Object(inner) => collect(&format!("{prefix}{name}."), inner, found, tables),
            Tree::List(rows) if rows.iter().any(|row| matches!(row, Tree::Object(_))) => {
                let _ = write!(tables, "\n{name}:\n{}", table(rows));
            }
            value => found.push((format!("{prefix}{name}"), value.plain())),
        }
    }
}

/// One line a row, its columns those of the first row that hold one value.
fn table(rows: &[Tree]) -> String {
    let Some(Tree::Object(first)) = rows.first() else {
        return rows.iter().map(|row| row.plain() + "\n").collect();
    };
    let single = |(_, value): &(&String, &Tree)| !matches!(value, Tree::Object(_));
    let names: Vec<&str> = first.iter().filter(single).map(|(name, _)| name.as_str()).collect();
    let cell = |row: &Tree, name: &str| -> String {
        let value = match row {
            Tree::Object(fields) => fields.get(name).map(Tree::plain),
            _ => None,
        };
        value.unwrap_or_default().chars().take(MAX_COLUMN).collect()
    };
    let head: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let body = rows.iter().map(|row| names.iter().map(|name| cell(row, name)).collect::<Vec<_>>());
    let all: Vec<Vec<String>> = std::iter::once(head).chain(body).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..names.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    all.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        Tree::parse(text).unwrap().text()
    }

    #[test]
    fn objects_are_lines_and_lists_are_tables() {
        let user = r#"{"id":"ann","credits":{"available":8999999999.999999,"held":0},"email":null,
            "grants":[{"id":1,"kind":"free","remaining":0.000001}]}"#;
        let expected = "id                 ann\ncredits.available  8999999999.999999\ncredits.held       0\n\
            email              -\n\ngrants:\nid  kind  remaining\n1   free  0.000001\n";
        assert_eq!(show(user), expected);
        let page = r#"{"data":[{"id":"a","name":"x\u001b[31m"},{"id":"bcd","name":"y"}],"next":"c2"}"#;
        assert_eq!(show(page), "id   name\na    x?[31m\nbcd  y\n\nmore: --cursor c2\n");
        assert_eq!(show(r#"{"data":[],"next":null}"#), "none\n");
    }
}

//! Settings before they have types: a tree of values, each of which knows where it was written.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A line of a file, counted from 1.
    File(Arc<Path>, usize),
    /// An environment variable's name.
    Variable(Arc<str>),
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path, line) => write!(out, "{}:{line}", path.display()),
            Origin::Variable(name) => out.write_str(name),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) value: Value,
    /// It was found wrong and reported; reading goes on without it, to find what else is.
    pub(super) skipped: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Table(Table),
    List(Vec<Node>),
    Text(String),
    /// A variable's text: read as whatever the setting is.
    Raw(String),
    Integer(i64),
    /// Kept as written, so that no float stands between.
    Decimal(String),
    Bool(bool),
    /// What no setting is: a date, or a number out of range.
    Strange(&'static str),
}

pub(super) type Table = BTreeMap<String, Node>;

/// The tables whose entries have names of the operator's choosing. An entry set to `false` is taken away.
pub(super) const NAMED_TABLES: [&str; 8] =
    ["upstreams", "routes", "prices", "plans", "packs", "issuers", "flags", "experiments"];

impl Node {
    pub(super) fn new(origin: Origin, value: Value) -> Node {
        Node { origin, value, skipped: false }
    }
}

/// Reads a TOML document. The error is its line (from 1) and a message that quotes nothing, as the line may hold a secret.
pub(super) fn parse(text: &str, path: &Arc<Path>) -> Result<Table, (usize, String)> {
    let line = |offset: usize| 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
    let origin = |offset: usize| Origin::File(path.clone(), line(offset));
    match DeTable::parse(text) {
        Ok(document) => Ok(table(document.get_ref(), &origin)),
        Err(error) => Err((error.span().map_or(1, |span| line(span.start)), error.message().to_owned())),
    }
}

/// Reads one TOML value, as a variable may hold one for a list or a table.
pub(super) fn parse_value(text: &str, origin: &Origin) -> Result<Value, String> {
    match DeValue::parse(text) {
        Ok(parsed) => Ok(value(parsed.get_ref(), &|_| origin.clone())),
        Err(error) => Err(format!("is not a TOML value: {}", error.message())),
    }
}

fn table(parsed: &DeTable<'_>, origin: &dyn Fn(usize) -> Origin) -> Table {
    let node = |(key, entry): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let key: &toml::Spanned<std::borrow::Cow<'_, str>> = key;
        (key.get_ref().to_string(), Node::new(origin(key.span().start), value(entry.get_ref(), origin)))
    };
    parsed.iter().map(node).collect()
}

fn value(parsed: &DeValue<'_>, origin: &dyn Fn(usize) -> Origin) -> Value {
    match parsed {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Strange("a number that is out of range"),
        },
        DeValue::Float(number) => Value::Decimal(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Datetime(_) => Value::Strange("a date"),
        DeValue::Array(list) => Value::List(
            list.iter().map(|item| Node::new(origin(item.span().start), value(item.get_ref(), origin))).collect(),
        ),
        DeValue::Table(entries) => Value::Table(table(entries, origin)),
    }
}

/// Lays `over` onto `base`: tables merge by name, anything else is replaced.
pub(super) fn merge(base: &mut Table, over: Table) {
    for (name, node) in over {
        match (base.get_mut(&name), node) {
            (
                Some(Node { value: Value::Table(below), origin, .. }),
                Node { value: Value::Table(above), origin: from, .. },
            ) => {
                *origin = from;
                merge(below, above);
            }
            (_, node) => {
                base.insert(name, node);
            }
        }
    }
}

/// Lays one variable onto `base` at `path`, whose last name may be matched by an existing one with `-` for `_`.
pub(super) fn place(base: &mut Table, path: &[String], origin: &Origin, text: String) {
    let Some((first, rest)) = path.split_first() else { return };
    let name = base.keys().find(|key| key.to_lowercase().replace('-', "_") == *first).unwrap_or(first).clone();
    if rest.is_empty() {
        let node = match (base.get(&name), parse_value(&text, origin)) {
            (Some(Node { value: Value::Table(_), .. }), Ok(value @ (Value::Table(_) | Value::Bool(false)))) => {
                Node::new(origin.clone(), value)
            }
            _ => Node::new(origin.clone(), Value::Raw(text)),
        };
        merge(base, Table::from([(name, node)]));
        return;
    }
    let inner = base.entry(name).or_insert_with(|| Node::new(origin.clone(), Value::Table(Table::new())));
    if !matches!(inner.value, Value::Table(_)) {
        *inner = Node::new(origin.clone(), Value::Table(Table::new()));
    }
    if let Value::Table(table) = &mut inner.value {
        place(table, rest, origin, text);
    }
}

/// Takes away the named entries that were set to `false`.
pub(super) fn drop_disabled(root: &mut Table) {
    for name in NAMED_TABLES {
        if let Some(Node { value: Value::Table(table), .. }) = root.get_mut(name) {
            table.retain(|_, node| match &node.value {
                Value::Bool(flag) => *flag,
                Value::Raw(text) => text != "false",
                _ => true,
            });
        }
    }
}

/// The deepest node on the way to `path` that exists.
pub(super) fn deepest<'a>(root: &'a mut Table, path: &[String]) -> Option<&'a mut Node> {
    let (first, rest) = path.split_first()?;
    let node = root.get_mut(first)?;
    descend(node, rest)
}

fn descend<'a>(node: &'a mut Node, path: &[String]) -> Option<&'a mut Node> {
    let Some((first, rest)) = path.split_first() else { return Some(node) };
    let has_child = match &node.value {
        Value::Table(table) => table.contains_key(first),
        Value::List(list) => first.parse::<usize>().is_ok_and(|index| index < list.len()),
        _ => false,
    };
    if !has_child {
        return Some(node);
    }
    let child = match &mut node.value {
        Value::Table(table) => table.get_mut(first),
        Value::List(list) => first.parse::<usize>().ok().and_then(|index| list.get_mut(index)),
        _ => None,
    };
    descend(child?, rest)
}

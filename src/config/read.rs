//! From the tree to typed settings: a serde deserializer that says where a wrong value was written, and reads a
//! variable's text as whatever the setting is.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use super::tree::{Node, Origin, Table, Value, parse_value};

/// One thing that is wrong.
#[derive(Debug)]
pub(super) struct ReadError {
    /// Innermost name last; filled in on the way out.
    reversed_path: Vec<String>,
    origin: Option<Origin>,
    pub(super) wrong: Wrong,
}

#[derive(Debug)]
pub(super) enum Wrong {
    /// No such setting.
    Unknown,
    Value(String),
}

impl ReadError {
    pub(super) fn path(&self) -> Vec<String> {
        self.reversed_path.iter().rev().cloned().collect()
    }

    pub(super) fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    fn value(message: impl Into<String>) -> ReadError {
        ReadError { reversed_path: Vec::new(), origin: None, wrong: Wrong::Value(message.into()) }
    }

    fn within(mut self, name: &str, origin: &Origin) -> ReadError {
        self.reversed_path.push(name.to_owned());
        self.origin.get_or_insert_with(|| origin.clone());
        self
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.wrong {
            Wrong::Unknown => out.write_str("is not a setting"),
            Wrong::Value(message) => out.write_str(message),
        }
    }
}

impl std::error::Error for ReadError {}

impl serde::de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> ReadError {
        ReadError::value(format!("is wrong: {message}"))
    }
}

type Result<T> = std::result::Result<T, ReadError>;

/// The root of the tree.
pub(super) struct Root<'a>(pub(super) &'a Table);

/// One value.
struct Reader<'a>(&'a Node);

impl Reader<'_> {
    fn text(&self) -> Result<&str> {
        match &self.0.value {
            Value::Text(text) | Value::Raw(text) => Ok(text),
            other => Err(expected("text in quotes", other)),
        }
    }

    fn integer(&self) -> Result<i64> {
        match &self.0.value {
            Value::Integer(number) => Ok(*number),
            Value::Raw(text) => {
                text.trim().replace('_', "").parse().map_err(|_| ReadError::value("must be a whole number"))
            }
            other => Err(expected("a whole number", other)),
        }
    }

    fn natural(&self) -> Result<u64> {
        u64::try_from(self.integer()?).map_err(|_| ReadError::value("must be 0 or more"))
    }

    /// A list, or a variable's text: a TOML list or words between commas.
    fn list(&self) -> Result<Vec<Node>> {
        let origin = &self.0.origin;
        match &self.0.value {
            Value::List(list) => Ok(list.clone()),
            Value::Raw(text) if text.trim_start().starts_with('[') => match parse_value(text, origin) {
                Ok(Value::List(list)) => Ok(list),
                Ok(_) => Err(ReadError::value("must be a list")),
                Err(message) => Err(ReadError::value(message)),
            },
            Value::Raw(text) => {
                let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
                Ok(words.map(|word| Node::new(origin.clone(), Value::Raw(word.to_owned()))).collect())
            }
            other => Err(expected("a list", other)),
        }
    }

    /// A table, or a variable's text: a TOML inline table.
    fn table(&self) -> Result<Table> {
        match &self.0.value {
            Value::Table(table) => Ok(table.clone()),
            Value::Raw(text) => match parse_value(text, &self.0.origin) {
                Ok(Value::Table(table)) => Ok(table),
                _ => Err(ReadError::value("is a group of settings: give it as an inline TOML table")),
            },
            other => Err(expected("a group of settings", other)),
        }
    }
}

/// Names the kinds, never the value: it may be a secret.
fn expected(what: &str, found: &Value) -> ReadError {
    let found = match found {
        Value::Table(_) => "a group of settings",
        Value::List(_) => "a list",
        Value::Text(_) | Value::Raw(_) => "text",
        Value::Integer(_) => "a number",
        Value::Decimal(_) => "a decimal number",
        Value::Bool(_) => "true or false",
        Value::Strange(what) => what,
    };
    ReadError::value(format!("must be {what}, not {found}"))
}

impl<'de> Deserializer<'de> for Root<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_map(Entries::new(self.0))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        refuse_unknown(self.0, fields)?;
        visitor.visit_map(Entries::new(self.0))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn refuse_unknown(table: &Table, fields: &[&str]) -> Result<()> {
    match table.iter().find(|(name, node)| !node.skipped && !fields.contains(&name.as_str())) {
        Some((name, node)) => {
            let unknown = ReadError { reversed_path: Vec::new(), origin: None, wrong: Wrong::Unknown };
            Err(unknown.within(name, &node.origin))
        }
        None => Ok(()),
    }
}

macro_rules! numbers {
    ($($method:ident $read:ident $visit:ident),*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
            visitor.$visit(self.$read()?).map_err(|_: ReadError| ReadError::value("is out of range"))
        })*
    };
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match &self.0.value {
            Value::Table(table) => visitor.visit_map(Entries::new(table)),
            Value::List(list) => visitor.visit_seq(Items { list, next: 0 }),
            Value::Text(text) | Value::Raw(text) | Value::Decimal(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Bool(flag) => visitor.visit_bool(*flag),
            Value::Strange(what) => Err(ReadError::value(format!("must not be {what}"))),
        }
    }

    numbers! {
        deserialize_i8 integer visit_i64, deserialize_i16 integer visit_i64, deserialize_i32 integer visit_i64,
        deserialize_i64 integer visit_i64, deserialize_u8 natural visit_u64, deserialize_u16 natural visit_u64,
        deserialize_u32 natural visit_u64, deserialize_u64 natural visit_u64
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match &self.0.value {
            Value::Bool(flag) => visitor.visit_bool(*flag),
            Value::Raw(text) => match text.trim() {
                "true" => visitor.visit_bool(true),
                "false" => visitor.visit_bool(false),
                _ => Err(ReadError::value("must be true or false")),
            },
            other => Err(expected("true or false", other)),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_seq(Items { list: &self.list()?, next: 0 })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_map(Entries::new(&self.table()?))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let table = self.table()?;
        refuse_unknown(&table, fields)?;
        visitor.visit_map(Entries::new(&table))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let text = self.text()?;
        if !variants.contains(&text) {
            return Err(ReadError::value(format!("must be one of {}", variants.join(", "))));
        }
        let variant: StrDeserializer<'_, ReadError> = text.into_deserializer();
        visitor.visit_enum(variant)
    }

    serde::forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Entries<'a> {
    rest: std::collections::btree_map::Iter<'a, String, Node>,
    current: Option<(&'a String, &'a Node)>,
}

impl<'a> Entries<'a> {
    fn new(table: &'a Table) -> Entries<'a> {
        Entries { rest: table.iter(), current: None }
    }
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        self.current = self.rest.by_ref().find(|(_, node)| !node.skipped);
        match self.current {
            Some((name, _)) => seed.deserialize(name.as_str().into_deserializer()).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value> {
        let Some((name, node)) = self.current else { return Err(ReadError::value("has no value")) };
        seed.deserialize(Reader(node)).map_err(|error| error.within(name, &node.origin))
    }
}

struct Items<'a> {
    list: &'a [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        while let Some(node) = self.list.get(self.next) {
            self.next += 1;
            if !node.skipped {
                let index = (self.next - 1).to_string();
                return seed.deserialize(Reader(node)).map(Some).map_err(|error| error.within(&index, &node.origin));
            }
        }
        Ok(None)
    }
}

//! Which settings there are, asked of the structs themselves: a deserializer that hands out empty values and notes what
//! it is asked for. Used to name the nearest setting, and by the test that none is undocumented.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde::de::value::{Error, StrDeserializer};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use super::Config;

/// Every setting's path, dots between the names, `*` where a name is the operator's; groups included. Elements of a
/// list have the path `list.0.name`.
pub(super) fn settings() -> BTreeSet<String> {
    let found = RefCell::new(BTreeSet::new());
    // Every leaf accepts what the tracer hands out; were one to refuse, the suggestions would be fewer, nothing else.
    let _ = Config::deserialize(Tracer { path: String::new(), found: &found });
    found.into_inner().into_iter().filter(|path| !path.ends_with(".0")).collect()
}

struct Tracer<'a> {
    path: String,
    found: &'a RefCell<BTreeSet<String>>,
}

impl Tracer<'_> {
    fn within(&self, name: &str) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        self.found.borrow_mut().insert(path.clone());
        Tracer { path, found: self.found }
    }
}

macro_rules! leaves {
    ($($method:ident $visit:ident $value:expr),*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit($value)
        })*
    };
}

impl<'de> Deserializer<'de> for Tracer<'_> {
    type Error = Error;

    leaves! {
        deserialize_any visit_i64 0, deserialize_bool visit_bool false, deserialize_u16 visit_u64 0,
        deserialize_u32 visit_u64 0, deserialize_u64 visit_u64 0, deserialize_i64 visit_i64 0,
        // A text that every kind of text setting accepts.
        deserialize_str visit_str "127.0.0.1:1", deserialize_string visit_str "127.0.0.1:1"
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Names { tracer: self, rest: &["0"] })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Names { tracer: self, rest: &["*"] })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Names { tracer: self, rest: fields })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let first: StrDeserializer<'_, Error> = variants.first().copied().unwrap_or_default().into_deserializer();
        visitor.visit_enum(first)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// Hands out the names one by one, an empty value with each.
struct Names<'a> {
    tracer: Tracer<'a>,
    rest: &'static [&'static str],
}

impl<'de> MapAccess<'de> for Names<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.rest.first().map(|name| seed.deserialize((*name).into_deserializer())).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (name, rest) = self.rest.split_first().unwrap_or((&"", &[]));
        self.rest = rest;
        seed.deserialize(self.tracer.within(name))
    }
}

impl<'de> SeqAccess<'de> for Names<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((name, rest)) = self.rest.split_first() else { return Ok(None) };
        self.rest = rest;
        seed.deserialize(self.tracer.within(name)).map(Some)
    }
}

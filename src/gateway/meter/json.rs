//! Values that read whatever JSON holds and keep only what metering needs. None of them fails on a type it did not
//! expect: an upstream's odd member must not hide the rest of its answer.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use smallvec::SmallVec;

/// More tokens than any answer has: a larger report is garbage.
pub(super) const MAX_REPORTED_TOKENS: u64 = 1_000_000_000;

/// Longest text kept from an answer (ids, model names).
const MAX_NAME_BYTES: usize = 256;

/// A whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Count {
    #[default]
    Absent,
    /// Negative, fractional, or no number.
    Garbage,
    Is(u64),
}

/// A report that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Garbage;

impl Count {
    pub(super) fn get(self) -> Option<u64> {
        match self {
            Count::Is(count) => Some(count),
            Count::Absent | Count::Garbage => None,
        }
    }

    pub(super) fn or(self, other: Count) -> Count {
        if self == Count::Absent { other } else { self }
    }

    /// A number of tokens, where one was reported.
    pub(super) fn tokens(self) -> Result<Option<u64>, Garbage> {
        match self {
            Count::Absent => Ok(None),
            Count::Is(count) if count <= MAX_REPORTED_TOKENS => Ok(Some(count)),
            Count::Is(_) | Count::Garbage => Err(Garbage),
        }
    }
}

/// Implements the visitor methods that read and drop what is not wanted.
macro_rules! otherwise {
    ($value:ty: $($kind:ident)*) => { $(otherwise!(@ $kind $value);)* };
    (@ scalars $value:ty) => { otherwise!($value: unit bool numbers); };
    (@ unit $value:ty) => {
        fn visit_unit<E: de::Error>(self) -> Result<$value, E> {
            Ok(Default::default())
        }
    };
    (@ bool $value:ty) => {
        fn visit_bool<E: de::Error>(self, _: bool) -> Result<$value, E> {
            Ok(Default::default())
        }
    };
    (@ numbers $value:ty) => {
        fn visit_u64<E: de::Error>(self, _: u64) -> Result<$value, E> {
            Ok(Default::default())
        }
        fn visit_i64<E: de::Error>(self, _: i64) -> Result<$value, E> {
            Ok(Default::default())
        }
        fn visit_f64<E: de::Error>(self, _: f64) -> Result<$value, E> {
            Ok(Default::default())
        }
    };
    (@ str $value:ty) => {
        fn visit_str<E: de::Error>(self, _: &str) -> Result<$value, E> {
            Ok(Default::default())
        }
    };
    (@ seq $value:ty) => {
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<$value, A::Error> {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(Default::default())
        }
    };
    (@ map $value:ty) => {
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<$value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(Default::default())
        }
    };
}
pub(super) use otherwise;

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Count, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Count;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a count")
            }
            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Count, E> {
                Ok(Count::Is(count))
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Count, E> {
                Ok(Count::Garbage)
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Count, E> {
                Ok(Count::Garbage)
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Count, E> {
                Ok(Count::Garbage)
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Count, E> {
                Ok(Count::Garbage)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Count, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Count::Garbage)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Count, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Count::Garbage)
            }
            otherwise!(Count: unit);
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A short text; empty when it is something else, or longer than any id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Name<'b>(pub(super) Option<Cow<'b, str>>);

impl Name<'_> {
    pub(super) fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }

    /// Keeps the first such text that a stream says.
    pub(super) fn keep(&self, place: &mut Option<Box<str>>) {
        if let (None, Some(text)) = (&place, &self.0) {
            *place = Some(text.as_ref().into());
        }
    }
}

impl<'de: 'b, 'b> Deserialize<'de> for Name<'b> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name<'b>, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Name<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a name")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name((text.len() <= MAX_NAME_BYTES).then_some(Cow::Borrowed(text))))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name((text.len() <= MAX_NAME_BYTES).then(|| Cow::Owned(text.to_owned()))))
            }
            otherwise!(Name<'de>: scalars seq map);
        }
        deserializer.deserialize_any(Reader)
    }
}

/// Whether a value is anything but null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Present(pub(super) bool);

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Present, D::Error> {
        Option::<IgnoredAny>::deserialize(deserializer).map(|value| Present(value.is_some()))
    }
}

/// An object read as `T`; `None` for everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object<T>(pub(super) Option<T>);

impl<T> Default for Object<T> {
    fn default() -> Object<T> {
        Object(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = Object<T>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(de::value::MapAccessDeserializer::new(map)).map(|value| Object(Some(value)))
            }
            otherwise!(Object<T>: scalars str seq);
        }
        deserializer.deserialize_any(Reader(PhantomData))
    }
}

/// The elements of an array; none for everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Each<T>(pub(super) SmallVec<[T; 2]>);

impl<T> Default for Each<T> {
    fn default() -> Each<T> {
        Each(SmallVec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Each<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Each<T>, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = Each<T>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Each<T>, A::Error> {
                let mut elements = SmallVec::new();
                while let Some(element) = seq.next_element()? {
                    elements.push(element);
                }
                Ok(Each(elements))
            }
            otherwise!(Each<T>: scalars str map);
        }
        deserializer.deserialize_any(Reader(PhantomData))
    }
}

/// How many bytes of text a value holds, at whatever depth; names of members, and ids and types, do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct TextLength(pub(super) u64);

/// Members that are not text a model made.
const NOT_TEXT: [&str; 9] =
    ["id", "call_id", "type", "role", "object", "status", "signature", "encrypted_content", "logprobs"];

impl<'de> Deserialize<'de> for TextLength {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TextLength, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = TextLength;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("text")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<TextLength, E> {
                Ok(TextLength(text.len() as u64))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<TextLength, A::Error> {
                let mut sum = 0_u64;
                while let Some(TextLength(length)) = seq.next_element()? {
                    sum = sum.saturating_add(length);
                }
                Ok(TextLength(sum))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TextLength, A::Error> {
                let mut sum = 0_u64;
                while let Some(Key(not_text)) = map.next_key()? {
                    if not_text {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        sum = sum.saturating_add(map.next_value::<TextLength>()?.0);
                    }
                }
                Ok(TextLength(sum))
            }
            otherwise!(TextLength: scalars);
        }
        deserializer.deserialize_any(Reader)
    }
}

/// Whether a member is in [`NOT_TEXT`].
struct Key(bool);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Key, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Key;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a member's name")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Key, E> {
                Ok(Key(NOT_TEXT.contains(&name)))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: for<'de> Deserialize<'de>>(json: &str) -> T {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn counts_are_counts_or_garbage() {
        assert_eq!(read::<Count>("0"), Count::Is(0));
        assert_eq!(read::<Count>("null"), Count::Absent);
        for garbage in ["-1", "1.5", "1e3", "\"12\"", "true", "[1]", "{\"a\":1}", "9223372036854775808", "1000000001"] {
            assert_eq!(read::<Count>(garbage).tokens(), Err(Garbage), "{garbage}");
        }
    }

    #[test]
    fn text_is_counted_at_any_depth() {
        let json = r#"[{"type":"text","text":"abc"},{"id":"x","function":{"name":"f","arguments":"{}"}},"é",4,null]"#;
        assert_eq!(read::<TextLength>(json), TextLength(3 + 1 + 2 + 2));
    }

    #[test]
    fn odd_types_are_nothing() {
        assert_eq!(read::<Each<Count>>("{\"a\":[]}").0.len(), 0);
        assert_eq!(read::<Object<TextLength>>("[1,2]").0, None);
        assert_eq!(serde_json::from_str::<Name<'_>>("12").unwrap().0, None);
        assert_eq!(serde_json::from_str::<Name<'_>>(&format!("\"{}\"", "x".repeat(257))).unwrap().0, None);
    }
}

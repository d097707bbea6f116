//! Prompts of completions and inputs of embeddings: text, tokens, or arrays of either.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

/// What a prompt holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Prompts {
    /// How many separate prompts.
    pub(super) count: u64,
    /// Tokens given as numbers.
    pub(super) tokens: u64,
    /// Bytes of the body that hold nothing but tokens.
    pub(super) token_bytes: u64,
}

impl Prompts {
    /// Reads the JSON of a prompt; `None` when it is no prompt.
    pub(super) fn read(json: &str) -> Option<Prompts> {
        match serde_json::from_str::<Shape>(json).ok()? {
            Shape::Nothing | Shape::Text => Some(Prompts { count: 1, ..Prompts::default() }),
            Shape::Token => None,
            Shape::Many { texts: 0, tokens, arrays } => {
                Some(Prompts { count: arrays.max(1), tokens, token_bytes: json.len() as u64 })
            }
            Shape::Many { texts, tokens, arrays } => {
                Some(Prompts { count: texts.saturating_add(arrays).saturating_add(tokens), tokens, token_bytes: 0 })
            }
        }
    }
}

enum Shape {
    Nothing,
    Text,
    Token,
    Many { texts: u64, tokens: u64, arrays: u64 },
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Shape, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Shape;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a prompt")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Shape, E> {
                Ok(Shape::Nothing)
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Shape, E> {
                Ok(Shape::Text)
            }
            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Shape, E> {
                Ok(Shape::Token)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let (mut texts, mut tokens, mut arrays) = (0_u64, 0_u64, 0_u64);
                while let Some(shape) = seq.next_element()? {
                    match shape {
                        Shape::Nothing => return Err(de::Error::custom("null is no prompt")),
                        Shape::Text => texts = texts.saturating_add(1),
                        Shape::Token => tokens = tokens.saturating_add(1),
                        Shape::Many { texts: inner_texts, tokens: inner, .. } => {
                            arrays = arrays.saturating_add(1);
                            tokens = tokens.saturating_add(inner);
                            texts = texts.saturating_add(inner_texts);
                        }
                    }
                }
                Ok(Shape::Many { texts, tokens, arrays })
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_and_tokens_are_counted() {
        let read = |json: &str| Prompts::read(json).map(|prompts| (prompts.count, prompts.tokens, prompts.token_bytes));
        assert_eq!(read(r#""a""#), Some((1, 0, 0)));
        assert_eq!(read(r#"["a","b"]"#), Some((2, 0, 0)));
        assert_eq!(read("[1,2,3]"), Some((1, 3, 7)));
        assert_eq!(read("[[1,2],[3]]"), Some((2, 3, 11)));
        assert_eq!(read("[]"), Some((1, 0, 2)));
        for bad in ["1", "-1", "{}", "[1.5]", "[null]", "true"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}

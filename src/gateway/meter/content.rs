//! What in a conversation is not text: images, documents, audio, and what only the upstream knows.
//!
//! A part counts as an image only where its protocol looks for one (`image_url`, `input_image`, a `source` of base64),
//! never because it looks like one: text that begins with `data:image/` in a text part, or in the arguments of a tool,
//! is text.

use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::json::otherwise;

/// Base64 bytes of audio that hold at least one token: a token is a tenth of a second, and speech is not coded below
/// some 8 kbit/s.
const AUDIO_BYTES_PER_TOKEN: u64 = 64;

/// No document costs more tokens than this: it would not fit into its model's context.
const MAX_DOCUMENT_TOKENS: u64 = 200_000;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Media {
    /// Bytes of the body that are not text.
    pub(super) bytes: u64,
    pub(super) images: u64,
    pub(super) documents: u64,
    /// Base64 bytes of documents and of audio, of those in `bytes`.
    document_bytes: u64,
    audio_bytes: u64,
    /// Something is referred to that is not in the body: a file, a stored item, a document behind a URL.
    pub(super) elsewhere: bool,
    /// Sources given as URLs, images or documents as their part says.
    url_sources: u64,
}

impl Media {
    /// A bound on the tokens of all that is not text.
    pub(super) fn tokens(&self, tokens_per_image: u64, bytes_per_token: u64) -> u64 {
        let pictures = self.images.saturating_add(self.documents).saturating_mul(tokens_per_image);
        let documents = self
            .document_bytes
            .div_ceil(bytes_per_token.max(1))
            .min(self.documents.saturating_mul(MAX_DOCUMENT_TOKENS));
        pictures.saturating_add(documents).saturating_add(self.audio_bytes.div_ceil(AUDIO_BYTES_PER_TOKEN))
    }

    fn image(&mut self, bytes: usize) {
        self.images = self.images.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    fn document(&mut self, bytes: usize) {
        self.documents = self.documents.saturating_add(1);
        self.document_bytes = self.document_bytes.saturating_add(bytes as u64);
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    fn audio(&mut self, bytes: usize) {
        self.audio_bytes = self.audio_bytes.saturating_add(bytes as u64);
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }
}

/// Walks `messages` or `input`, and notes what is not text.
pub(super) struct Conversation<'m>(pub(super) &'m mut Media);

impl<'de> DeserializeSeed<'de> for Conversation<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        Walk { place: Place::Turns, media: self.0 }.deserialize(deserializer)
    }
}

/// Where in a conversation a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Turns,
    Turn,
    /// A message's content, a tool's output: text, parts, or one part.
    Parts,
    Part,
    /// `image_url`: the URL, or an object with it.
    Image,
    /// Anthropic's `source`.
    Source,
    Audio,
    AudioData,
    File,
    FileData,
}

struct Walk<'m> {
    place: Place,
    media: &'m mut Media,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.place == Place::Source {
            return deserializer.deserialize_any(SourceReader { media: self.media });
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a conversation")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        match self.place {
            Place::Image if begins(text, "data:image/") => self.media.image(text.len()),
            Place::Image => self.media.image(0),
            Place::AudioData => self.media.audio(text.len()),
            Place::FileData if begins(text, "data:application/pdf") => self.media.document(text.len()),
            Place::FileData if begins(text, "data:image/") => self.media.image(text.len()),
            _ => {}
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let place = match self.place {
            Place::Turns => Place::Turn,
            Place::Parts => Place::Part,
            _ => {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(());
            }
        };
        while seq.next_element_seed(Walk { place, media: self.media })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let url_sources = self.media.url_sources;
        let mut document = false;
        while let Some(Member(member)) = map.next_key()? {
            let inner = match (self.place, member) {
                (Place::Turn, "content" | "output") | (Place::Part | Place::Parts, "content") => Place::Parts,
                (Place::Part | Place::Parts, "image_url") | (Place::Image, "url") => Place::Image,
                (Place::Part | Place::Parts, "source") => Place::Source,
                (Place::Part | Place::Parts, "input_audio") => Place::Audio,
                (Place::Part | Place::Parts, "file") => Place::File,
                (Place::Part | Place::Parts | Place::File, "file_data") => Place::FileData,
                (Place::Audio, "data") => Place::AudioData,
                (Place::Turn | Place::Part | Place::Parts, "type") => {
                    let Kind(kind) = map.next_value()?;
                    document |= kind == Some(Known::Document);
                    self.media.elsewhere |= kind == Some(Known::ItemReference);
                    continue;
                }
                (Place::Part | Place::Parts | Place::File | Place::Image, "file_id" | "file_url")
                | (Place::Part | Place::Parts, "video_url") => {
                    self.media.elsewhere = true;
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            map.next_value_seed(Walk { place: inner, media: self.media })?;
        }
        self.media.elsewhere |= document && self.media.url_sources > url_sources;
        Ok(())
    }

    otherwise!((): scalars);
}

/// Reads Anthropic's `source`, whose members may come in any order. Of a member that comes twice every value must say
/// base64: which one the upstream takes is not ours to know.
struct SourceReader<'m> {
    media: &'m mut Media,
}

impl<'de> Visitor<'de> for SourceReader<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a source")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut kinds, mut base64, mut types, mut images, mut pdfs) = (0_u32, 0_u32, 0_u32, 0_u32, 0_u32);
        let mut data = 0_usize;
        let mut url = false;
        while let Some(Member(member)) = map.next_key()? {
            match member {
                "type" => {
                    let Kind(kind) = map.next_value()?;
                    kinds += 1;
                    base64 += u32::from(kind == Some(Known::Base64));
                    url |= kind == Some(Known::Url);
                    self.media.elsewhere |= kind == Some(Known::File);
                }
                "media_type" => {
                    let Kind(kind) = map.next_value()?;
                    types += 1;
                    images += u32::from(kind == Some(Known::ImageType));
                    pdfs += u32::from(kind == Some(Known::PdfType));
                }
                "data" => data = data.saturating_add(map.next_value::<Length>()?.0),
                "content" => map.next_value_seed(Walk { place: Place::Parts, media: self.media })?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let only = |count, of| of > 0 && count == of;
        if only(base64, kinds) && only(images, types) {
            self.media.image(data);
        } else if only(base64, kinds) && only(pdfs, types) {
            self.media.document(data);
        } else if url {
            self.media.image(0);
            self.media.url_sources = self.media.url_sources.saturating_add(1);
        }
        Ok(())
    }

    otherwise!((): scalars str seq);
}

/// Walks `tools`: how many there are, and whether the upstream runs some itself, whose results then are input too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Tools {
    pub(super) count: u64,
    /// Of these, the ones that the upstream describes to the model itself.
    pub(super) built_in: u64,
    pub(super) hosted: bool,
}

impl<'de> Deserialize<'de> for Tools {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tools, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Tools;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("tools")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tools, A::Error> {
                let mut tools = Tools::default();
                while let Some(tool) = seq.next_element_seed(ToolReader)? {
                    tools.count = tools.count.saturating_add(1);
                    tools.built_in = tools.built_in.saturating_add(tool.built_in);
                    tools.hosted |= tool.hosted;
                }
                Ok(tools)
            }
            otherwise!(Tools: scalars str map);
        }
        deserializer.deserialize_any(Reader)
    }
}

struct ToolReader;

impl<'de> DeserializeSeed<'de> for ToolReader {
    type Value = Tools;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tools, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ToolReader {
    type Value = Tools;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a tool")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tools, A::Error> {
        let mut tool = Tools { count: 1, ..Tools::default() };
        while let Some(Member(member)) = map.next_key()? {
            if member == "type" {
                let Kind(kind) = map.next_value()?;
                tool.built_in |= u64::from(kind != Some(Known::PlainTool));
                tool.hosted |= kind == Some(Known::HostedTool);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(tool)
    }
    otherwise!(Tools: scalars str seq);
}

/// What a `type` or `media_type` may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Base64,
    Url,
    File,
    Document,
    ItemReference,
    ImageType,
    PdfType,
    PlainTool,
    HostedTool,
}

#[derive(Default)]
struct Kind(Option<Known>);

/// Tools that the upstream runs; all others only ask the client to run something.
const HOSTED_TOOLS: [&str; 8] = [
    "web_search",
    "web_fetch",
    "file_search",
    "code_interpreter",
    "code_execution",
    "image_generation",
    "mcp",
    "tool_search",
];

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Kind;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a type")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Kind, E> {
                Ok(Kind(Some(match text {
                    "base64" => Known::Base64,
                    "url" => Known::Url,
                    "file" => Known::File,
                    "document" => Known::Document,
                    "item_reference" => Known::ItemReference,
                    "function" | "custom" => Known::PlainTool,
                    "application/pdf" => Known::PdfType,
                    _ if text.starts_with("image/") => Known::ImageType,
                    _ if HOSTED_TOOLS.iter().any(|tool| text.starts_with(tool)) => Known::HostedTool,
                    _ => return Ok(Kind(None)),
                })))
            }
            otherwise!(Kind: scalars seq map);
        }
        deserializer.deserialize_any(Reader)
    }
}

/// The names of members that matter here, as they are spelled in the protocols.
struct Member(&'static str);

const MEMBERS: [&str; 14] = [
    "content",
    "output",
    "image_url",
    "url",
    "source",
    "input_audio",
    "file",
    "file_data",
    "data",
    "type",
    "file_id",
    "file_url",
    "video_url",
    "media_type",
];

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Member, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Member;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a member's name")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Member, E> {
                Ok(Member(MEMBERS.into_iter().find(|known| *known == name).unwrap_or("")))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

/// How long a text is; zero for anything else.
#[derive(Default)]
struct Length(usize);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Length, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Length;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("text")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Length, E> {
                Ok(Length(text.len()))
            }
            otherwise!(Length: scalars seq map);
        }
        deserializer.deserialize_any(Reader)
    }
}

fn begins(text: &str, prefix: &str) -> bool {
    text.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(json: &str) -> Media {
        let mut media = Media::default();
        let mut deserializer = serde_json::Deserializer::from_str(json);
        Conversation(&mut media).deserialize(&mut deserializer).unwrap();
        media
    }

    #[test]
    fn images_of_every_protocol_are_found() {
        let url = "data:image/png;base64,AAAA";
        let chat = format!(r#"[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"{url}"}}}}]}}]"#);
        let responses = format!(r#"[{{"role":"user","content":[{{"type":"input_image","image_url":"{url}"}}]}}]"#);
        let screenshot = format!(r#"[{{"type":"computer_call_output","output":{{"type":"x","image_url":"{url}"}}}}]"#);
        for json in [chat, responses, screenshot] {
            let media = walk(&json);
            assert_eq!((media.images, media.bytes), (1, url.len() as u64), "{json}");
        }
        let messages = r#"[{"content":[{"type":"tool_result","content":[{"type":"image","source":
            {"data":"AAAAAA","media_type":"image/jpeg","type":"base64"}}]}]}]"#;
        assert_eq!((walk(messages).images, walk(messages).bytes), (1, 6));
        let linked = r#"[{"content":[{"type":"image","source":{"type":"url","url":"https://example.com/i.png"}}]}]"#;
        assert_eq!((walk(linked).images, walk(linked).bytes, walk(linked).elsewhere), (1, 0, false));
    }

    #[test]
    fn text_that_looks_like_an_image_is_text() {
        let url = "data:image/png;base64,AAAA";
        for json in [
            format!(r#"[{{"role":"user","content":"{url}"}}]"#),
            format!(r#"[{{"role":"user","content":[{{"type":"text","text":"{url}"}}]}}]"#),
            format!(r#"[{{"role":"assistant","content":[{{"type":"tool_use","input":{{"image_url":"{url}"}}}}]}}]"#),
            format!(r#"[{{"image_url":"{url}"}}]"#),
            r#"[{"content":[{"type":"document","source":{"type":"text","media_type":"text/plain","data":"abc"}}]}]"#
                .to_owned(),
            r#"[{"content":[{"source":{"type":"base64","type":"text","media_type":"image/png","data":"abc"}}]}]"#
                .to_owned(),
        ] {
            assert_eq!(walk(&json), Media::default(), "{json}");
        }
    }

    #[test]
    fn documents_audio_and_references_are_bounded() {
        let pdf = r#"[{"content":[{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"AAAA"}}]}]"#;
        assert_eq!(walk(pdf).tokens(2_000, 2), 2_002);
        let audio = r#"[{"content":[{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}]}]"#;
        assert_eq!(walk(audio).tokens(2_000, 2), 1);
        let file = r#"[{"content":[{"type":"file","file":{"file_data":"data:application/pdf;base64,AA"}}]}]"#;
        assert_eq!(walk(file).documents, 1);
        for elsewhere in [
            r#"[{"content":[{"type":"input_file","file_id":"f"}]}]"#,
            r#"[{"type":"item_reference","id":"i"}]"#,
            r#"[{"content":[{"source":{"type":"url","url":"u"},"type":"document"}]}]"#,
            r#"[{"content":[{"type":"image","source":{"type":"file","file_id":"f"}}]}]"#,
        ] {
            assert!(walk(elsewhere).elsewhere, "{elsewhere}");
        }
    }
}

//! The top-level members of a request's body: read once, borrowed, with their places.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::content::{Conversation, Media, Tools};
use super::request::BadRequest;
use super::{Endpoint, prompt::Prompts};

/// Members that decide what a request costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Member {
    Model,
    Stream,
    StreamOptions,
    MaxTokens,
    MaxCompletionTokens,
    MaxOutputTokens,
    N,
    BestOf,
    Messages,
    Input,
    Prompt,
    Tools,
    Background,
    PreviousResponseId,
    Conversation,
    Thinking,
    WebSearchOptions,
    McpServers,
    Container,
    Models,
    Fallbacks,
    ServiceTier,
    Speed,
}

const MEMBERS: [(Member, &str); 23] = [
    (Member::Model, "model"),
    (Member::Stream, "stream"),
    (Member::StreamOptions, "stream_options"),
    (Member::MaxTokens, "max_tokens"),
    (Member::MaxCompletionTokens, "max_completion_tokens"),
    (Member::MaxOutputTokens, "max_output_tokens"),
    (Member::N, "n"),
    (Member::BestOf, "best_of"),
    (Member::Messages, "messages"),
    (Member::Input, "input"),
    (Member::Prompt, "prompt"),
    (Member::Tools, "tools"),
    (Member::Background, "background"),
    (Member::PreviousResponseId, "previous_response_id"),
    (Member::Conversation, "conversation"),
    (Member::Thinking, "thinking"),
    (Member::WebSearchOptions, "web_search_options"),
    (Member::McpServers, "mcp_servers"),
    (Member::Container, "container"),
    (Member::Models, "models"),
    (Member::Fallbacks, "fallbacks"),
    (Member::ServiceTier, "service_tier"),
    (Member::Speed, "speed"),
];

impl Member {
    pub(super) fn name(self) -> &'static str {
        MEMBERS.iter().find(|(member, _)| *member == self).map_or("", |(_, name)| name)
    }
}

/// A member's value as it stands in the body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raw<'b> {
    pub(super) text: &'b str,
    /// Where it begins.
    pub(super) at: usize,
}

impl Raw<'_> {
    pub(super) fn span(&self) -> Range<usize> {
        self.at..self.at.saturating_add(self.text.len())
    }

    pub(super) fn is_null(&self) -> bool {
        self.text == "null"
    }
}

/// What the top level of a body holds.
#[derive(Debug, Default)]
pub(super) struct Body<'b> {
    scalars: [Option<Raw<'b>>; MEMBERS.len()],
    pub(super) media: Media,
    pub(super) tools: Tools,
    pub(super) prompts: Prompts,
    /// Where the first member may be inserted.
    pub(super) open: usize,
}

impl<'b> Body<'b> {
    pub(super) fn read(endpoint: Endpoint, bytes: &'b [u8]) -> Result<Body<'b>, BadRequest> {
        let mut reader = Reader { endpoint, bytes, body: Body::default(), bad: None };
        let read = match str::from_utf8(bytes) {
            // Checked at once, which costs less than checking text by text.
            Ok(text) => reader.read(serde_json::Deserializer::from_str(text)),
            Err(_) => reader.read(serde_json::Deserializer::from_slice(bytes)),
        };
        if let Some(bad) = reader.bad {
            return Err(bad);
        }
        if let Err(error) = read {
            return Err(BadRequest::new(match error.classify() {
                Category::Data => "the body must be a JSON object".to_owned(),
                Category::Io | Category::Syntax | Category::Eof => {
                    format!("the body is not valid JSON (line {}, column {})", error.line(), error.column())
                }
            }));
        }
        let brace = bytes.iter().position(|byte| *byte == b'{').unwrap_or_default();
        reader.body.open = brace.saturating_add(1);
        Ok(reader.body)
    }

    /// The value of a member, as it was sent; null counts.
    pub(super) fn sent(&self, member: Member) -> Option<Raw<'b>> {
        self.scalars.get(member as usize).copied().flatten()
    }

    /// The value of a member; null is as good as nothing.
    pub(super) fn get(&self, member: Member) -> Option<Raw<'b>> {
        self.sent(member).filter(|raw| !raw.is_null())
    }

    pub(super) fn flag(&self, member: Member) -> Result<bool, BadRequest> {
        match self.get(member).map(|raw| raw.text) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(BadRequest::of(member, "must be true or false")),
        }
    }

    /// A whole number in `range`.
    pub(super) fn number(&self, member: Member, range: Range<u64>) -> Result<Option<u64>, BadRequest> {
        let Some(raw) = self.get(member) else { return Ok(None) };
        let whole = !raw.text.is_empty() && raw.text.bytes().all(|byte| byte.is_ascii_digit());
        let number = if whole { raw.text.parse().ok().filter(|number| range.contains(number)) } else { None };
        match number {
            Some(number) => Ok(Some(number)),
            None => {
                let most = range.end.saturating_sub(1);
                Err(BadRequest::of(member, &format!("must be a whole number from {} to {most}", range.start)))
            }
        }
    }

    pub(super) fn text(&self, member: Member, most: usize) -> Result<Option<Cow<'b, str>>, BadRequest> {
        let Some(raw) = self.get(member) else { return Ok(None) };
        match serde_json::from_str::<Text<'b>>(raw.text) {
            Ok(Text(text)) if !text.is_empty() && text.len() <= most && !text.chars().any(char::is_control) => {
                Ok(Some(text))
            }
            _ => Err(BadRequest::of(member, &format!("must be a text of 1 to {most} bytes"))),
        }
    }
}

/// A text, borrowed where it has no escapes.
struct Text<'b>(Cow<'b, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text<'de>, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Text<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("text")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

struct Reader<'b> {
    endpoint: Endpoint,
    bytes: &'b [u8],
    body: Body<'b>,
    bad: Option<BadRequest>,
}

impl<'b> Reader<'b> {
    fn read<R: serde_json::de::Read<'b>>(&mut self, mut json: serde_json::Deserializer<R>) -> serde_json::Result<()> {
        json.deserialize_any(self)?;
        json.end()
    }

    fn raw(&self, value: &'b RawValue) -> Raw<'b> {
        let text = value.get();
        Raw { text, at: (text.as_ptr() as usize).saturating_sub(self.bytes.as_ptr() as usize) }
    }

    fn member<A: MapAccess<'b>>(&mut self, member: Member, map: &mut A) -> Result<(), A::Error> {
        let conversation = match member {
            Member::Messages => true,
            Member::Input => self.endpoint == Endpoint::Responses,
            _ => false,
        };
        if conversation {
            // Its text is never looked at; that it is there at all is what counts.
            self.note(member, Raw { text: "", at: 0 });
            return map.next_value_seed(Conversation(&mut self.body.media));
        }
        if member == Member::Tools {
            self.note(member, Raw { text: "", at: 0 });
            self.body.tools = map.next_value()?;
            return Ok(());
        }
        let raw = self.raw(map.next_value::<&'b RawValue>()?);
        self.note(member, raw);
        let prompts = match member {
            Member::Input => self.endpoint == Endpoint::Embeddings,
            Member::Prompt => self.endpoint == Endpoint::Completions,
            _ => false,
        };
        if prompts {
            match Prompts::read(raw.text) {
                Some(prompts) => self.body.prompts = prompts,
                None => return Err(self.stop(BadRequest::of(member, "must be text or tokens, or an array of such"))),
            }
        }
        Ok(())
    }

    fn note(&mut self, member: Member, raw: Raw<'b>) {
        if let Some(place) = self.body.scalars.get_mut(member as usize) {
            *place = Some(raw);
        }
    }

    fn stop<E: de::Error>(&mut self, bad: BadRequest) -> E {
        self.bad = Some(bad);
        E::custom("refused")
    }
}

impl<'b> Visitor<'b> for &mut Reader<'b> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'b>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Key>()? {
            match key {
                Key::Other => drop(map.next_value::<IgnoredAny>()?),
                // Parsers that ignore case would take it for the real one, and price and upstream would disagree.
                Key::Lookalike(member) => {
                    let message = format!("must be spelled `{}`", member.name());
                    return Err(self.stop(BadRequest::of(member, &message)));
                }
                Key::Is(member) if self.body.sent(member).is_some() => {
                    return Err(self.stop(BadRequest::of(member, "must be there only once")));
                }
                Key::Is(member) => self.member(member, &mut map)?,
            }
        }
        Ok(())
    }
}

/// Whether a parser that ignores case could take `name` for `known`: Unicode folds two letters more into ASCII.
fn alike(known: &str, name: &str) -> bool {
    if name.is_ascii() {
        return known.eq_ignore_ascii_case(name);
    }
    let folded = name.chars().map(|letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    });
    folded.eq(known.chars())
}

enum Key {
    Is(Member),
    Lookalike(Member),
    Other,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Key, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Key;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a member's name")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Key, E> {
                let alike = MEMBERS.iter().find(|(_, known)| alike(known, name));
                Ok(match alike {
                    Some((member, known)) if *known == name => Key::Is(*member),
                    Some((member, _)) => Key::Lookalike(*member),
                    None => Key::Other,
                })
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

/// `stream_options`: whether usage was asked for, and how to ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StreamOptions {
    Asked,
    /// `include_usage` stands here, null or false.
    Declined(Range<usize>),
    /// It is missing; members may be inserted here, and others follow or not.
    Silent {
        open: usize,
        followed: bool,
    },
}

impl StreamOptions {
    pub(super) fn read(raw: Raw<'_>) -> Result<StreamOptions, BadRequest> {
        let bad = |what: &str| BadRequest::of(Member::StreamOptions, what);
        let mut reader = OptionsReader { include_usage: None, twice: false, members: 0 };
        let mut json = serde_json::Deserializer::from_str(raw.text);
        json.deserialize_any(&mut reader).map_err(|_| bad("must be an object"))?;
        if reader.twice {
            return Err(bad("must hold include_usage only once"));
        }
        let Some(value) = reader.include_usage else {
            return Ok(StreamOptions::Silent { open: raw.at.saturating_add(1), followed: reader.members > 0 });
        };
        match value.get() {
            "true" => Ok(StreamOptions::Asked),
            "false" | "null" => {
                let offset = (value.get().as_ptr() as usize).saturating_sub(raw.text.as_ptr() as usize);
                let at = raw.at.saturating_add(offset);
                Ok(StreamOptions::Declined(at..at.saturating_add(value.get().len())))
            }
            _ => Err(bad("must hold include_usage as true or false")),
        }
    }
}

struct OptionsReader<'b> {
    include_usage: Option<&'b RawValue>,
    twice: bool,
    members: usize,
}

impl<'b> Visitor<'b> for &mut OptionsReader<'b> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'b>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(name)) = map.next_key::<Text<'_>>()? {
            self.members = self.members.saturating_add(1);
            if name.eq_ignore_ascii_case("include_usage") {
                self.twice |= self.include_usage.is_some();
                self.include_usage = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Reads one whole number from an object, as Anthropic's `thinking` holds its budget; `None` where there is none.
pub(super) fn budget_tokens(raw: Raw<'_>) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Thinking {
        #[serde(default)]
        budget_tokens: super::json::Count,
    }
    serde_json::from_str::<super::json::Object<Thinking>>(raw.text).ok()?.0?.budget_tokens.get()
}

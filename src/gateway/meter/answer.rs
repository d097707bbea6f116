//! Meters a whole JSON answer.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;

use super::json::{Each, Object, Present, TextLength};
use super::openai::Delta;
use super::scan::members;
use super::usage::{Progress, Usage};
use super::{Endpoint, Inspection, Tally};

/// Pieces shorter than this are copied together: to keep a tiny one costs more than itself, and it may keep alive all of
/// the read that brought it.
const MIN_REFERENCED_BYTES: usize = 1_024;

/// Keeps an answer's chunks by reference up to `metering.max_answer_bytes`, and reads their usage at the end. A larger
/// answer, or one that is no JSON, is estimated from its size.
#[derive(Debug)]
pub struct AnswerMeter {
    endpoint: Endpoint,
    chunks: Vec<Bytes>,
    /// Short pieces, after the chunks.
    short: BytesMut,
    bytes: usize,
    max_bytes: usize,
    images_asked: u64,
    progress: Progress,
}

/// Of an answer, what says how much it is.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    usage: Object<Usage>,
    #[serde(default)]
    error: Present,
    #[serde(default)]
    choices: Each<Choice>,
    /// Messages.
    #[serde(default)]
    content: TextLength,
    /// Responses.
    #[serde(default)]
    output: TextLength,
    /// Images and embeddings.
    #[serde(default)]
    data: Each<Present>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    message: Object<Delta>,
    #[serde(default)]
    text: TextLength,
}

impl Answer {
    fn text(&self) -> u64 {
        let choice = |choice: &Choice| choice.message.0.as_ref().map_or(0, Delta::length).saturating_add(choice.text.0);
        self.choices.0.iter().map(choice).fold(self.content.0.saturating_add(self.output.0), u64::saturating_add)
    }
}

impl AnswerMeter {
    pub fn new(endpoint: Endpoint, request: &Inspection) -> AnswerMeter {
        AnswerMeter {
            endpoint,
            chunks: Vec::new(),
            short: BytesMut::new(),
            bytes: 0,
            max_bytes: request.max_answer_bytes,
            images_asked: request.images,
            progress: Progress::new(request),
        }
    }

    /// Where the forwarded limit (per choice) is not the request's own.
    pub fn limited(mut self, output_limit: Option<u64>) -> AnswerMeter {
        if let Some(limit) = output_limit {
            self.progress.set_limit(limit);
        }
        self
    }

    /// Remembers the next bytes of the answer.
    pub fn push(&mut self, chunk: &Bytes) {
        self.bytes = self.bytes.saturating_add(chunk.len());
        if self.bytes > self.max_bytes {
            self.chunks = Vec::new();
            self.short = BytesMut::new();
        } else if !self.chunks.is_empty() && chunk.len() < MIN_REFERENCED_BYTES {
            self.short.extend_from_slice(chunk);
        } else if !chunk.is_empty() {
            self.close_short();
            self.chunks.push(chunk.clone());
        }
    }

    fn close_short(&mut self) {
        if !self.short.is_empty() {
            self.chunks.push(self.short.split().freeze());
        }
    }

    /// What the answer used; call it when the answer is over, or was left.
    pub fn finish(mut self) -> Tally {
        self.close_short();
        // One copy costs less than reading JSON byte by byte across chunks.
        let joined: Bytes = match self.chunks.as_mut_slice() {
            [] => Bytes::new(),
            [only] => std::mem::take(only),
            many => many.concat().into(),
        };
        if !self.reported(&joined) {
            self.whole(&joined);
        }
        self.progress.tally()
    }

    fn whole(&mut self, answer: &[u8]) {
        match serde_json::from_slice::<Object<Answer>>(answer).ok().and_then(|answer| answer.0) {
            Some(answer) => self.read(&answer),
            None => self.guess(),
        }
    }

    /// Reads what most answers say about themselves; then their text need not be looked at.
    fn reported(&mut self, answer: &[u8]) -> bool {
        if self.endpoint == Endpoint::Images {
            return false;
        }
        let Some([Some(usage), None | Some(b"null")]) = members(answer, ["usage", "error"]) else { return false };
        if let Ok(Object(Some(usage))) = serde_json::from_slice::<Object<Usage>>(usage) {
            self.progress.report(&usage, true);
            self.progress.complete = self.progress.reported();
        }
        self.progress.complete
    }

    fn read(&mut self, answer: &Answer) {
        self.progress.complete = true;
        self.progress.failed = answer.error.0;
        if !answer.error.0 {
            self.progress.whole(answer.text());
            if self.endpoint == Endpoint::Images {
                self.progress.images = answer.data.0.len() as u64;
            }
        }
        if let Some(usage) = &answer.usage.0 {
            self.progress.report(usage, true);
        }
    }

    fn guess(&mut self) {
        match self.endpoint {
            Endpoint::Embeddings => {}
            Endpoint::Images => self.progress.images = if self.bytes > 0 { self.images_asked } else { 0 },
            _ => self.progress.whole(self.bytes as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config;
    use crate::pricing::Tokens;

    fn meter(endpoint: Endpoint, request: &str) -> AnswerMeter {
        let request = Inspection::read(endpoint, request.as_bytes(), &config::Metering::default()).unwrap();
        AnswerMeter::new(endpoint, &request)
    }

    fn tally(endpoint: Endpoint, answer: &str) -> Tally {
        let request = r#"{"model":"m","max_tokens":1000,"max_output_tokens":1000,"n":2,"input":"a"}"#;
        let mut whole = meter(endpoint, request);
        whole.push(&Bytes::copy_from_slice(answer.as_bytes()));
        let whole = whole.finish();
        let mut pieces = meter(endpoint, request);
        answer.as_bytes().chunks(3).for_each(|chunk| pieces.push(&Bytes::copy_from_slice(chunk)));
        assert_eq!(pieces.finish(), whole);
        whole
    }

    fn reported(endpoint: Endpoint, answer: &str) -> Tokens {
        let tally = tally(endpoint, answer);
        assert!(tally.reported && tally.complete && !tally.failed, "{answer}");
        tally.tokens
    }

    #[test]
    fn reported_usage_is_read() {
        let tokens = |input, cached, output| Tokens { input, cached, output, images: 0 };
        let chat = r#"{"id":"c","choices":[{"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],
            "usage":{"prompt_tokens":9,"completion_tokens":12,"prompt_tokens_details":{"cached_tokens":3}}}"#;
        assert_eq!(reported(Endpoint::Chat, chat), tokens(9, 3, 12));
        let embeddings = r#"{"data":[{"embedding":[0.1,-2e-9]}],"usage":{"prompt_tokens":5,"total_tokens":5}}"#;
        assert_eq!(reported(Endpoint::Embeddings, embeddings), tokens(5, 0, 0));
        let responses = r#"{"error":null,"output":[],"usage":{"input_tokens":5,"output_tokens":0}}"#;
        assert_eq!(reported(Endpoint::Responses, responses), tokens(5, 0, 0));
        let messages = r#"{"content":[{"type":"text","text":"hi"}],"usage":{"input_tokens":5,
            "cache_read_input_tokens":7,"cache_creation_input_tokens":1,"output_tokens":4}}"#;
        assert_eq!(reported(Endpoint::Messages, messages), tokens(13, 7, 4));
        let images = r#"{"data":[{"b64_json":"AA"},{"url":"u"}],"usage":{"input_tokens":5,"output_tokens":90}}"#;
        assert_eq!(reported(Endpoint::Images, images), Tokens { images: 2, ..tokens(5, 0, 90) });
    }

    #[test]
    fn an_answer_without_usage_is_estimated_from_its_text() {
        let chat = r#"{"choices":[{"message":{"content":"twelve bytes"}},{"message":{"tool_calls":[{"id":"1234",
            "type":"function","function":{"name":"four","arguments":"{\"a\":1}x"}}]}}],"usage":null}"#;
        let estimated = tally(Endpoint::Chat, chat);
        assert_eq!((estimated.reported, estimated.tokens.output), (false, 6));
        assert!(estimated.tokens.input > 0);
        let garbage = chat.replace("null", r#"{"prompt_tokens":-1,"completion_tokens":5}"#);
        assert_eq!(tally(Endpoint::Chat, &garbage), estimated);
        assert_eq!(tally(Endpoint::Images, r#"{"data":[{},{}]}"#).tokens.images, 2);
    }

    #[test]
    fn what_cannot_be_read_is_estimated_from_its_size() {
        let text = tally(Endpoint::Chat, "not JSON at all.");
        assert_eq!((text.complete, text.reported, text.tokens.output), (false, false, 4));
        assert_eq!(tally(Endpoint::Images, "{\"data\":[").tokens.images, 2, "as many as were asked for");
        let mut large = meter(Endpoint::Chat, r#"{"model":"m"}"#);
        large.max_bytes = 10;
        large.push(&Bytes::from_static(b"{\"usage\":{"));
        large.push(&Bytes::from_static(b"\"prompt_tokens\":1,\"completion_tokens\":1}}"));
        assert!(large.chunks.is_empty());
        assert!(!large.finish().reported);
    }

    /// failures 20: an upstream's error text is billed as output (new-api#5288).
    #[test]
    fn an_error_is_no_output() {
        let failed = tally(Endpoint::Chat, r#"{"error":{"message":"a long story about what went wrong"}}"#);
        assert_eq!((failed.failed, failed.tokens), (true, Tokens::default()));
    }
    /// An answer in the smallest pieces costs no more memory than its text.
    #[test]
    fn tiny_pieces_are_kept_together() {
        let mut pieces = meter(Endpoint::Chat, r#"{"model":"m"}"#);
        let text = format!(r#"{{"x":"{}","usage":{{"prompt_tokens":1,"completion_tokens":2}}}}"#, "y".repeat(5_000));
        text.as_bytes().chunks(1).for_each(|chunk| pieces.push(&Bytes::copy_from_slice(chunk)));
        pieces.push(&Bytes::from(vec![b' '; 2 * MIN_REFERENCED_BYTES]));
        assert_eq!(pieces.chunks.len(), 3);
        let tally = pieces.finish();
        assert_eq!((tally.reported, tally.tokens.output), (true, 2));
    }

    fn json() -> BoxedStrategy<String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            Just("-1.5e3".to_owned()),
            "[0-9]".prop_map(|digit| digit),
            r#""([a-z{}\[\]:, ]|\\\\|\\"|\\u0075|"usage":){0,6}""#
                .prop_filter("valid JSON", |text| { serde_json::from_str::<String>(text).is_ok() }),
        ];
        leaf.prop_recursive(4, 24, 4, |value| {
            prop_oneof![
                prop::collection::vec(value.clone(), 0..4).prop_map(|values| format!("[{}]", values.join(" ,"))),
                members(value.boxed()),
            ]
        })
        .boxed()
    }

    fn members(value: BoxedStrategy<String>) -> impl Strategy<Value = String> {
        let usage = "\\{\"(prompt|input)_tokens\": ?[0-9]{1,3},\"(completion|output)_tokens\":[0-9]{1,3}\\}";
        let member = prop_oneof![
            3 => ("(usage|us\\\\u0061ge|choices|content|output|data|message|error|x|total_tokens)", value.clone()),
            2 => (Just("usage".to_owned()), usage),
            1 => ("err(o|\\\\u006f)r", prop_oneof![Just("null".to_owned()), Just("{}".to_owned())]),
        ];
        prop::collection::vec((member, "[ \t\r\n]{0,2}"), 0..5).prop_map(|members| {
            let member = |((name, value), space): &((String, String), String)| {
                format!("{space}\"{name}\"{space}:{space}{value}{space}")
            };
            format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// The short way to the usage is as good as reading everything. Only where the long way finds no object that it
        /// can read, a member that comes twice, say, does the short one know more: what the upstream reports.
        #[test]
        fn usage_found_is_usage_read(answer in members(json()), number in 0..ENDPOINTS.len()) {
            let request = r#"{"model":"m","max_tokens":1000,"max_output_tokens":1000,"n":2,"input":"a"}"#;
            let mut found = meter(ENDPOINTS[number], request);
            found.push(&Bytes::from(answer.clone()));
            let mut read = meter(ENDPOINTS[number], request);
            read.bytes = answer.len();
            read.whole(answer.as_bytes());
            let (found, read) = (found.finish(), read.progress.tally());
            if serde_json::from_str::<Object<super::Answer>>(&answer).is_ok() {
                prop_assert_eq!(found, read);
            } else if found != read {
                let usage = members_of(&answer, ["usage", "error"]).and_then(|[usage, _]| usage).unwrap();
                let usage: Usage = serde_json::from_slice(usage).unwrap();
                let mut alone = meter(ENDPOINTS[number], request);
                alone.progress.report(&usage, true);
                prop_assert_eq!(found.tokens.input, alone.progress.tally().tokens.input);
            }
        }
    }

    const ENDPOINTS: [Endpoint; 6] = [
        Endpoint::Chat,
        Endpoint::Completions,
        Endpoint::Responses,
        Endpoint::Embeddings,
        Endpoint::Images,
        Endpoint::Messages,
    ];

    fn members_of<'j, const N: usize>(json: &'j str, names: [&str; N]) -> Option<[Option<&'j [u8]>; N]> {
        super::members(json.as_bytes(), names)
    }
}

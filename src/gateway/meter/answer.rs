//! Meters a whole JSON answer.

use bytes::Bytes;
use serde::Deserialize;

use super::json::{Each, Object, Present, TextLength};
use super::openai::Delta;
use super::scan::members;
use super::usage::{Progress, Usage};
use super::{Endpoint, Inspection, Tally};

/// Keeps an answer's chunks by reference up to `metering.max_answer_bytes`, and reads their usage at the end. A larger
/// answer, or one that is no JSON, is estimated from its size.
#[derive(Debug)]
pub struct AnswerMeter {
    endpoint: Endpoint,
    chunks: Vec<Bytes>,
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
        } else if !chunk.is_empty() {
            self.chunks.push(chunk.clone());
        }
    }

    /// What the answer used; call it when the answer is over, or was left.
    pub fn finish(mut self) -> Tally {
        // One copy costs less than reading JSON byte by byte across chunks.
        let joined: Bytes = match self.chunks.as_mut_slice() {
            [] => Bytes::new(),
            [only] => std::mem::take(only),
            many => many.concat().into(),
        };
        if !self.reported(&joined) {
            match serde_json::from_slice::<Object<Answer>>(&joined).ok().and_then(|answer| answer.0) {
                Some(answer) => self.read(&answer),
                None => self.guess(),
            }
        }
        self.progress.tally()
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
}

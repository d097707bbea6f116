//! What holds for any bytes whatever: called by the fuzz targets, and by a property test of the same.

use bytes::Bytes;

use super::{AnswerMeter, Endpoint, Inspection, StreamMeter, Tally};
use crate::config;

/// What did not hold.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub &'static str);

const ENDPOINTS: [Endpoint; 6] = [
    Endpoint::Chat,
    Endpoint::Completions,
    Endpoint::Responses,
    Endpoint::Embeddings,
    Endpoint::Images,
    Endpoint::Messages,
];

const REQUEST: &str = r#"{"model":"m","stream":true,"max_tokens":100,"n":2,"input":"a"}"#;
const ASKING: &str = r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#;

/// `Ok` where the condition is met.
///
/// # Errors
/// What did not hold.
pub(in crate::gateway) fn holds(what: &'static str, condition: bool) -> Result<(), Violation> {
    if condition { Ok(()) } else { Err(Violation(what)) }
}

/// Takes the first bytes as choices, the rest as the body of a request.
///
/// # Errors
/// What did not hold.
pub fn request_estimator(data: &[u8]) -> Result<(), Violation> {
    let [first, second, body @ ..] = data else { return Ok(()) };
    let endpoint = ENDPOINTS[usize::from(*first) % ENDPOINTS.len()];
    let settings = config::Metering::default();
    let Ok(inspection) = Inspection::read(endpoint, body, &settings) else { return Ok(()) };
    let original = Bytes::copy_from_slice(body);
    let limit = (second % 2 == 1).then_some(u64::from(*second));
    let forwarded = inspection.forward_body(original.clone(), limit);
    let Ok(again) = Inspection::read(endpoint, &forwarded, &settings) else {
        return Err(Violation("an edited body is as good as the original"));
    };
    let has_output = !matches!(endpoint, Endpoint::Embeddings | Endpoint::Images);
    if let (Some(limit), true) = (limit, has_output) {
        holds("a clamp is obeyed", again.output_limit.is_some_and(|written| written <= limit))?;
    } else {
        holds("no limit is written unasked", again.output_limit == inspection.output_limit)?;
    }
    if inspection.stream && matches!(endpoint, Endpoint::Chat | Endpoint::Completions) {
        holds("usage is asked for", again.wants_usage)?;
    }
    holds("the rest is the same", again.model == inspection.model && again.choices == inspection.choices)?;
    let untouched = again.forward_body(forwarded.clone(), limit);
    holds("an edit is made once", untouched == forwarded)
}

/// Takes the first bytes as choices, the rest as a stream in pieces.
///
/// # Errors
/// What did not hold.
pub fn sse_meter(data: &[u8]) -> Result<(), Violation> {
    let [first, second, stream @ ..] = data else { return Ok(()) };
    let endpoint = ENDPOINTS[usize::from(*first) % ENDPOINTS.len()];
    let body = if second % 2 == 1 { ASKING } else { REQUEST };
    let body = if endpoint == Endpoint::Messages { REQUEST } else { body };
    let Ok(inspection) = Inspection::read(endpoint, body.as_bytes(), &config::Metering::default()) else {
        return Err(Violation("the request is a good one"));
    };
    let piece = usize::from(*second / 2).max(1);
    let (whole, whole_tally) = run(endpoint, &inspection, stream, stream.len().max(1));
    let (pieces, tally) = run(endpoint, &inspection, stream, piece);
    holds("pieces change no byte", pieces == whole)?;
    holds("pieces change no count", tally == whole_tally)?;
    holds("nothing is made up", pieces.len() <= stream.len())?;
    if tally.reported {
        holds("a report makes sense", tally.tokens.input <= 3 * super::json::MAX_REPORTED_TOKENS)?;
    }
    let mut meter = StreamMeter::new(endpoint, &inspection);
    for chunk in stream.chunks(piece) {
        drop(meter.push(Bytes::copy_from_slice(chunk)));
        holds(
            "exposure covers what is charged",
            meter.tally().reported || meter.exposure() >= meter.tally().tokens.output,
        )?;
    }
    let running = !meter.ended();
    let ending = meter.cut();
    if running && endpoint != Endpoint::Images {
        holds("an ending ends its event", ending.ends_with(b"\n\n") && str::from_utf8(&ending).is_ok())?;
    }
    holds("a cut is final", meter.ended() && meter.cut().is_empty() && meter.end().is_empty())?;
    let mut answer = AnswerMeter::new(endpoint, &inspection);
    stream.chunks(piece).for_each(|chunk| answer.push(&Bytes::copy_from_slice(chunk)));
    let tally = answer.finish();
    holds("an estimate is no report", tally.complete || !tally.reported)
}

fn run(endpoint: Endpoint, inspection: &Inspection, stream: &[u8], piece: usize) -> (Vec<u8>, Tally) {
    let mut meter = StreamMeter::new(endpoint, inspection);
    let mut sent = Vec::new();
    for chunk in stream.chunks(piece) {
        meter.push(Bytes::copy_from_slice(chunk)).iter().for_each(|bytes| sent.extend_from_slice(bytes));
    }
    sent.extend_from_slice(&meter.end());
    (sent, meter.tally())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that look enough like JSON and events to get somewhere.
    fn plausible() -> impl Strategy<Value = Vec<u8>> {
        let words = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            "\"",
            "\\u005f",
            "null",
            "true",
            "false",
            "0",
            "1",
            "-1",
            "1e9",
            "99999999999",
            "\"model\":\"m\"",
            "\"stream\":true",
            "\"stream_options\":",
            "\"include_usage\":",
            "\"max_tokens\":",
            "\"max_completion_tokens\":7",
            "\"n\":2",
            "\"messages\":[",
            "\"content\":",
            "\"image_url\":",
            "\"source\":",
            "\"choices\":[",
            "\"delta\":{",
            "\"index\":1",
            "\"finish_reason\":\"stop\"",
            "\"usage\":{",
            "\"prompt_tokens\":3",
            "\"completion_tokens\":4",
            "\"type\":\"message_start\"",
            "\"type\":\"message_delta\"",
            "\"type\":\"content_block_start\"",
            "\"error\":",
            "data: ",
            "event: x",
            ": c",
            "\n",
            "\r",
            "\r\n",
            "\n\n",
            "data: [DONE]\n\n",
            "data: {\"type\":\"message_stop\"}\n\n",
            "\u{feff}",
            "é",
            "data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":1,\"output_tokens\":2}}}\n\n",
        ]);
        prop::collection::vec(words, 0..30).prop_map(|words| words.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn any_request_is_estimated(choices in any::<[u8; 2]>(), body in plausible()) {
            prop_assert_eq!(request_estimator(&[&choices[..], &body].concat()), Ok(()));
            let braced = [&choices[..], b"{\"model\":\"m\",\"max_tokens\":9,", &body, b"}"].concat();
            prop_assert_eq!(request_estimator(&braced), Ok(()));
        }

        #[test]
        fn any_stream_is_metered(choices in any::<[u8; 2]>(), stream in plausible()) {
            prop_assert_eq!(sse_meter(&[&choices[..], &stream].concat()), Ok(()));
        }

        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(sse_meter(&bytes), Ok(()));
            prop_assert_eq!(request_estimator(&bytes), Ok(()));
        }
    }
}

use proptest::prelude::*;

use super::*;
use crate::config;
use crate::pricing::Tokens;

const CHAT: &str = concat!(
    ": keep-alive\n\n",
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"gpt-4o\",\"choices\":",
    "[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null},\"finish_reason\":null}],\"usage\":null}\n\n",
    "data: {\"id\":\"chatcmpl-1\",\"created\":1760000000,\"model\":\"gpt-4o\",\"choices\":",
    "[{\"index\":0,\"delta\":{\"content\":\"Hello\"},\"finish_reason\":null}],\"usage\":null}\n\n",
    "data: {\"id\":\"chatcmpl-1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" wörld\"},\"finish_reason\":null}]}\n\n",
    "data: {\"id\":\"chatcmpl-1\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n",
);
const CHAT_USAGE: &str = concat!(
    "data: {\"id\":\"chatcmpl-1\",\"choices\":[],\"usage\":{\"prompt_tokens\":19,\"completion_tokens\":10,",
    "\"total_tokens\":29,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n",
);
const DONE: &str = "data: [DONE]\n\n";

const MESSAGES: &str = concat!(
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",",
    "\"content\":[],\"model\":\"claude\",\"stop_reason\":null,\"usage\":{\"input_tokens\":25,\"cache_creation_input_tokens\":5,",
    "\"cache_read_input_tokens\":10,\"output_tokens\":1}}}\n\n",
    "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"thinking\",\"thinking\":\"\"}}\n\n",
    "event: ping\ndata: {\"type\": \"ping\"}\n\n",
    "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"thinking_delta\",\"thinking\":\"So...\"}}\n\n",
    "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"signature_delta\",\"signature\":\"EqQBCgIYAhIM\"}}\n\n",
    "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
    "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":1,\"content_block\":{\"type\":\"tool_use\",\"id\":\"toolu_1\",\"name\":\"get_weather\",\"input\":{}}}\n\n",
    "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"location\\\":\"}}\n\n",
);
const MESSAGES_END: &str = concat!(
    "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":1}\n\n",
    "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"tool_use\",\"stop_sequence\":null},\"usage\":{\"output_tokens\":15}}\n\n",
);
const MESSAGE_STOP: &str = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

const RESPONSES: &str = concat!(
    "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":{\"id\":\"resp_1\",\"object\":\"response\",",
    "\"created_at\":1760000000,\"status\":\"in_progress\",\"model\":\"gpt-5\",\"output\":[],\"usage\":null,\"error\":null}}\n\n",
    "event: response.output_item.added\ndata: {\"type\":\"response.output_item.added\",\"sequence_number\":1,\"output_index\":0,\"item\":{\"type\":\"message\"}}\n\n",
    "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"sequence_number\":2,\"delta\":\"Hi there\",\"obfuscation\":\"xxxxxxxxxxx\"}\n\n",
    "event: response.function_call_arguments.delta\ndata: {\"type\":\"response.function_call_arguments.delta\",\"sequence_number\":3,\"delta\":\"{}\"}\n\n",
    "event: response.output_text.done\ndata: {\"type\":\"response.output_text.done\",\"sequence_number\":4,\"text\":\"Hi there\"}\n\n",
);
const RESPONSE_COMPLETED: &str = concat!(
    "event: response.completed\ndata: {\"type\":\"response.completed\",\"sequence_number\":5,\"response\":{\"id\":\"resp_1\",\"status\":\"completed\",",
    "\"error\":null,\"usage\":{\"input_tokens\":37,\"input_tokens_details\":{\"cached_tokens\":30},\"output_tokens\":11,\"total_tokens\":48}}}\n\n",
);

fn request(endpoint: Endpoint, rest: &str) -> Inspection {
    let body = format!("{{\"model\":\"m\",\"stream\":true{rest}}}");
    Inspection::read(endpoint, body.as_bytes(), &config::Metering::default()).unwrap()
}

fn meter(endpoint: Endpoint) -> StreamMeter {
    let rest = if endpoint == Endpoint::Messages { ",\"max_tokens\":1000" } else { "" };
    StreamMeter::new(endpoint, &request(endpoint, rest))
}

fn asking() -> StreamMeter {
    StreamMeter::new(Endpoint::Chat, &request(Endpoint::Chat, ",\"stream_options\":{\"include_usage\":true}"))
}

fn push(meter: &mut StreamMeter, text: &str) -> String {
    let output = meter.push(Bytes::copy_from_slice(text.as_bytes()));
    output.iter().map(|bytes| str::from_utf8(bytes).unwrap()).collect()
}

/// The client's bytes before the end and at it, and the tally.
fn run(meter: &mut StreamMeter, chunks: &[&[u8]]) -> (Vec<u8>, Vec<u8>, Tally) {
    let mut sent = Vec::new();
    for chunk in chunks {
        meter.push(Bytes::copy_from_slice(chunk)).iter().for_each(|bytes| sent.extend_from_slice(bytes));
    }
    let last = meter.end().to_vec();
    (sent, last, meter.tally())
}

fn reported(input: u64, cached: u64, output: u64) -> Tally {
    Tally { tokens: Tokens { input, cached, output, images: 0 }, reported: true, complete: true, failed: false }
}

/// Runs a stream whole, cut in two at every byte, and byte by byte.
fn golden(make: impl Fn() -> StreamMeter, stream: &str, sent: &str, last: &str, tally: Tally) {
    for newline in ["\n", "\r\n", "\r"] {
        let turn = |text: &str| text.replace('\n', newline).into_bytes();
        let (stream, sent, last) = (turn(stream), turn(sent), turn(last));
        let expected = (sent, last, tally);
        let mut splits: Vec<Vec<&[u8]>> = (0..=stream.len()).map(|at| vec![&stream[..at], &stream[at..]]).collect();
        splits.push(stream.chunks(1).collect());
        for chunks in splits {
            let found = run(&mut make(), &chunks);
            assert_eq!(found.2, expected.2);
            assert_eq!([found.0, found.1].concat(), [expected.0.clone(), expected.1.clone()].concat());
        }
    }
}

/// failures 18: streams without `include_usage` are under-counted (litellm PR#35290).
#[test]
fn chat_is_counted_and_usage_shown_only_to_who_asked() {
    let stream = [CHAT, CHAT_USAGE, DONE].concat();
    golden(|| meter(Endpoint::Chat), &stream, CHAT, DONE, reported(19, 4, 10));
    golden(asking, &stream, &[CHAT, CHAT_USAGE].concat(), DONE, reported(19, 4, 10));
}

#[test]
fn messages_and_responses_are_counted() {
    let stream = [MESSAGES, MESSAGES_END, MESSAGE_STOP].concat();
    let sent = [MESSAGES, MESSAGES_END].concat();
    golden(|| meter(Endpoint::Messages), &stream, &sent, MESSAGE_STOP, reported(40, 10, 15));
    let stream = [RESPONSES, RESPONSE_COMPLETED].concat();
    golden(|| meter(Endpoint::Responses), &stream, RESPONSES, RESPONSE_COMPLETED, reported(37, 30, 11));
}

#[test]
fn the_terminal_event_waits_for_the_end() {
    for (endpoint, before, last) in [
        (Endpoint::Chat, CHAT.to_owned(), DONE),
        (Endpoint::Messages, [MESSAGES, MESSAGES_END].concat(), MESSAGE_STOP),
        (Endpoint::Responses, RESPONSES.to_owned(), RESPONSE_COMPLETED),
    ] {
        let mut meter = meter(endpoint);
        assert_eq!(push(&mut meter, &before), before);
        assert!(!meter.ended());
        assert_eq!(push(&mut meter, last), "");
        assert!(meter.ended());
        assert_eq!(push(&mut meter, ": after\n\n"), "");
        assert_eq!(meter.end(), format!("{last}: after\n\n"));
        assert_eq!(meter.end(), "");
        assert_eq!(push(&mut meter, "data: late\n\n"), "");
    }
}

#[test]
fn what_passes_in_one_chunk_stays_one_slice_of_it() {
    let mut meter = meter(Endpoint::Chat);
    let chunk = Bytes::from([CHAT, CHAT_USAGE, DONE].concat());
    let output = meter.push(chunk.clone());
    assert_eq!(output.len(), 1);
    assert_eq!((output[0].as_ptr(), output[0].len()), (chunk.as_ptr(), CHAT.len()));
}

/// failures 18: usage on a chunk that also has choices is dropped (litellm#36168).
#[test]
fn usage_beside_choices_is_counted_and_passes() {
    let last = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"!\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":7}}\n\n";
    golden(|| meter(Endpoint::Chat), &[last, DONE].concat(), last, DONE, reported(3, 0, 7));
}

#[test]
fn usage_on_every_chunk_is_cumulative() {
    let chunk = |output: u64, reason: &str| {
        format!(
            "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"abcd\"}},\"finish_reason\":{reason}}}],\"usage\":{{\"prompt_tokens\":3,\"completion_tokens\":{output}}}}}\n\n"
        )
    };
    let mut meter = meter(Endpoint::Chat);
    push(&mut meter, &chunk(40, "null"));
    push(&mut meter, &chunk(80, "null"));
    let tally = meter.tally();
    assert_eq!((tally.tokens.output, tally.reported), (80, false), "a count on the way is the least that was used");
    push(&mut meter, &chunk(90, "\"stop\""));
    assert_eq!(meter.tally().tokens.output, 90);
    assert!(meter.tally().reported);
}

/// failures 19: usage of zero is taken for missing (litellm#37992).
#[test]
fn a_reported_zero_is_zero() {
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0}}\n\n";
    golden(|| meter(Endpoint::Chat), &[CHAT, usage, DONE].concat(), CHAT, DONE, reported(0, 0, 0));
}

#[test]
fn garbage_usage_is_estimated() {
    for garbage in ["\"12\"", "-5", "1e30", "9223372036854775808", "1.5", "[]", "{}", "true"] {
        let usage = CHAT_USAGE.replace("\"completion_tokens\":10", &format!("\"completion_tokens\":{garbage}"));
        let mut meter = meter(Endpoint::Chat);
        let (sent, _, tally) = run(&mut meter, &[CHAT.as_bytes(), usage.as_bytes(), DONE.as_bytes()]);
        assert_eq!((tally.reported, tally.tokens.output, tally.complete), (false, 3, true), "{garbage}");
        assert_eq!(sent, CHAT.as_bytes());
        let end = MESSAGES_END.replace("\"output_tokens\":15", &format!("\"output_tokens\":{garbage}"));
        let mut meter = super::tests::meter(Endpoint::Messages);
        let (_, _, tally) = run(&mut meter, &[MESSAGES.as_bytes(), end.as_bytes(), MESSAGE_STOP.as_bytes()]);
        assert_eq!((tally.reported, tally.tokens.input, tally.tokens.output), (false, 40, 7), "{garbage}");
    }
}

/// failures 20: an upstream's error text is billed as output (new-api#5288).
#[test]
fn errors_are_no_output() {
    let story = "x".repeat(4_000);
    for (endpoint, error) in [
        (Endpoint::Chat, format!("data: {{\"error\":{{\"message\":\"{story}\"}}}}\n\n")),
        (Endpoint::Completions, format!("data: {{\"error\":{{\"message\":\"{story}\"}},\"choices\":[]}}\n\n")),
        (
            Endpoint::Messages,
            format!("event: error\ndata: {{\"type\":\"error\",\"error\":{{\"message\":\"{story}\"}}}}\n\n"),
        ),
        (Endpoint::Responses, format!("event: error\ndata: {{\"type\":\"error\",\"message\":\"{story}\"}}\n\n")),
        (
            Endpoint::Responses,
            format!(
                "data: {{\"type\":\"response.failed\",\"response\":{{\"error\":{{\"message\":\"{story}\"}},\"usage\":null}}}}\n\n"
            ),
        ),
    ] {
        let mut meter = meter(endpoint);
        let (sent, last, tally) = run(&mut meter, &[error.as_bytes()]);
        assert_eq!([sent, last].concat(), error.as_bytes(), "the client sees it");
        assert_eq!(tally, Tally { failed: true, ..Tally::default() });
    }
    let mut meter = meter(Endpoint::Chat);
    push(&mut meter, CHAT);
    let before = meter.tally().tokens;
    push(&mut meter, "data: {\"error\":{\"message\":\"gone\"}}\n\n");
    assert_eq!((meter.tally().tokens, meter.tally().failed), (before, true), "what was delivered before is owed");
}

/// failures 21: a cancelled stream of 806 deltas is logged as one token (bifrost PR#3709).
#[test]
fn a_cancelled_stream_counts_what_was_delivered() {
    let delta = |text: &str| match text.len() % 3 {
        0 => format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n"),
        1 => format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"reasoning_content\":\"{text}\"}}}}]}}\n\n"),
        _ => format!(
            "data: {{\"choices\":[{{\"index\":1,\"delta\":{{\"tool_calls\":[{{\"index\":0,\"function\":{{\"arguments\":\"{text}\"}}}}]}}}}]}}\n\n"
        ),
    };
    let mut meter = meter(Endpoint::Chat);
    for index in 0..806 {
        push(&mut meter, &delta(&"words and more"[..3 + index % 3]));
    }
    let tally = meter.tally();
    assert!((780..=830).contains(&tally.tokens.output), "{tally:?}");
    assert!(!tally.reported && !tally.complete);
    assert!(meter.exposure() >= tally.tokens.output);
}

fn data(ending: &[u8]) -> Vec<serde_json::Value> {
    let text = str::from_utf8(ending).unwrap();
    assert!(text.ends_with("\n\n"));
    let events = text.split("\n\n").filter(|event| !event.is_empty());
    events.filter_map(|event| serde_json::from_slice(&Event::parse(event.as_bytes()).data.unwrap()).ok()).collect()
}

#[test]
fn chat_is_cut_with_its_own_ending() {
    let mut meter = StreamMeter::new(
        Endpoint::Chat,
        &request(Endpoint::Chat, ",\"n\":2,\"stream_options\":{\"include_usage\":true}"),
    );
    push(&mut meter, &CHAT.replace("gpt-4o", "gpt \\\"4o\\\"\\n"));
    push(&mut meter, "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"half");
    let ending = meter.cut();
    assert!(ending.ends_with(b"data: [DONE]\n\n"));
    let chunks = data(&ending);
    assert_eq!(chunks[0]["id"], "chatcmpl-1");
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    assert_eq!(chunks[0]["created"], 1_760_000_000);
    assert_eq!(chunks[0]["model"], "gpt \"4o\"\n");
    let choice = serde_json::json!([{"index": 1, "delta": {}, "logprobs": null, "finish_reason": "length"}]);
    assert_eq!(chunks[0]["choices"], choice, "the first choice was finished");
    assert_eq!(chunks[1]["choices"], serde_json::json!([]));
    assert_eq!(chunks[1]["usage"]["completion_tokens"], meter.tally().tokens.output);
    assert_eq!(meter.tally().tokens.output, 3);
    assert_eq!((meter.cut(), meter.end()), (Bytes::new(), Bytes::new()));
    let mut fresh = super::tests::meter(Endpoint::Completions);
    let chunks = data(&fresh.cut());
    assert_eq!((chunks.len(), &chunks[0]["choices"][0]["finish_reason"]), (1, &"length".into()));
    assert_eq!(chunks[0]["model"], "m");
}

#[test]
fn messages_are_cut_with_their_own_ending() {
    let mut meter = meter(Endpoint::Messages);
    push(&mut meter, MESSAGES);
    let ending = meter.cut();
    let events = data(&ending);
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["content_block_stop", "message_delta", "message_stop"]);
    assert_eq!(events[0]["index"], 1);
    assert_eq!(events[1]["delta"]["stop_reason"], "max_tokens");
    assert_eq!(events[1]["usage"]["output_tokens"], meter.tally().tokens.output);
    assert!(ending.starts_with(b"event: content_block_stop\ndata: "));
    assert_eq!(data(&super::tests::meter(Endpoint::Messages).cut())[0]["type"], "message_start");
}

#[test]
fn responses_are_cut_with_their_own_ending() {
    let mut meter = meter(Endpoint::Responses);
    push(&mut meter, RESPONSES);
    let ending = meter.cut();
    let events = data(&ending);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["type"], "response.incomplete");
    assert_eq!(events[0]["sequence_number"], 5);
    assert_eq!(events[0]["response"]["id"], "resp_1");
    assert_eq!(events[0]["response"]["model"], "gpt-5");
    assert_eq!(events[0]["response"]["incomplete_details"]["reason"], "max_output_tokens");
}

#[test]
fn a_cut_after_the_terminal_event_is_the_end() {
    let mut meter = meter(Endpoint::Chat);
    push(&mut meter, &[CHAT, CHAT_USAGE, DONE].concat());
    assert_eq!(meter.cut(), DONE);
    assert!(meter.tally().reported);
}

#[test]
fn a_stream_that_breaks_off_is_passed_as_far_as_it_came() {
    let mut meter = meter(Endpoint::Chat);
    let half = &CHAT[..CHAT.len() - 30];
    let (sent, last, tally) = run(&mut meter, &[half.as_bytes()]);
    assert_eq!([sent, last].concat(), half.as_bytes());
    assert_eq!((tally.complete, tally.reported, tally.tokens.output), (false, false, 3));
    let unended = [CHAT, CHAT_USAGE.trim_end()].concat();
    let (sent, last, tally) = run(&mut super::tests::meter(Endpoint::Chat), &[unended.as_bytes()]);
    assert_eq!([sent, last].concat(), CHAT.as_bytes());
    assert!(tally.reported, "usage counts without the blank line that should follow it");
}

#[test]
fn an_event_too_large_to_keep_passes_unseen() {
    let mut small = request(Endpoint::Chat, "");
    small.max_answer_bytes = 300;
    let mut meter = StreamMeter::new(Endpoint::Chat, &small);
    let large = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", "x".repeat(900));
    assert_eq!(push(&mut meter, &large[..100]), "");
    assert_eq!(push(&mut meter, &large[100..500]), large[..500]);
    let cut = StreamMeter::cut(&mut meter);
    assert!(cut.starts_with(b"\n\ndata: "), "the broken event is ended first");
    let mut meter = StreamMeter::new(Endpoint::Chat, &small);
    push(&mut meter, &large[..500]);
    let rest = [&large[500..], CHAT_USAGE, DONE].concat();
    assert_eq!(push(&mut meter, &rest), large[500..]);
    assert_eq!(meter.end(), DONE);
}

#[test]
fn images_count_as_they_are_finished() {
    let partial = "event: image_generation.partial_image\ndata: {\"type\":\"image_generation.partial_image\",\"b64_json\":\"AA\"}\n\n";
    let done = "event: image_generation.completed\ndata: {\"type\":\"image_generation.completed\",\"b64_json\":\"AA\",\"usage\":{\"input_tokens\":5,\"output_tokens\":50}}\n\n";
    let mut expected = reported(5, 0, 50);
    expected.tokens.images = 1;
    golden(|| meter(Endpoint::Images), &[partial, done].concat(), partial, done, expected);
}

#[test]
fn a_clamped_limit_is_believed() {
    let mut meter = meter(Endpoint::Chat).limited(Some(10));
    push(&mut meter, &CHAT.replace("Hello", &"x".repeat(64)));
    assert_eq!((meter.exposure(), meter.tally().tokens.output), (10, 10));
}

/// Parts that streams are made of, good and bad.
fn part() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(CHAT.to_owned()),
        Just(CHAT_USAGE.to_owned()),
        Just(MESSAGES.to_owned()),
        Just(MESSAGES_END.to_owned()),
        Just(RESPONSES.to_owned()),
        Just("data: {\"choices\":[{\"index\":99999,\"delta\":{\"content\":[1,{\"text\":\"abc\"}]}}]}\n\n".to_owned()),
        Just("data: {\"choices\":{},\"usage\":[],\"error\":null,\"id\":7}\n\n".to_owned()),
        Just("\u{feff}".to_owned()),
        "(data: |event: |: |\\{|\\}|\\[|\"|a|\r|\n|\r\n){0,20}",
    ]
}

fn metered() -> impl Strategy<Value = Endpoint> {
    prop::sample::select(vec![
        Endpoint::Chat,
        Endpoint::Completions,
        Endpoint::Responses,
        Endpoint::Images,
        Endpoint::Messages,
    ])
}

proptest! {
    #[test]
    fn nothing_is_lost_and_cutting_changes_nothing(
        endpoint in metered(),
        parts in prop::collection::vec(part(), 0..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let stream = parts.concat().into_bytes();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]).collect();
        let (sent, last, tally) = run(&mut meter(endpoint), &chunks);
        let (whole_sent, whole_last, whole_tally) = run(&mut meter(endpoint), &[&stream]);
        prop_assert_eq!(tally, whole_tally);
        let (sent, whole) = ([sent, last].concat(), [whole_sent, whole_last].concat());
        prop_assert_eq!(&sent, &whole);
        if !parts.iter().any(|part| part == CHAT_USAGE || part == MESSAGES_END) {
            prop_assert_eq!(&sent, &stream, "nothing to hide");
        }
    }

    #[test]
    fn any_stream_can_be_cut(endpoint in metered(), parts in prop::collection::vec(part(), 0..6)) {
        let mut meter = meter(endpoint);
        meter.push(Bytes::from(parts.concat()));
        let ending = meter.cut();
        prop_assert!(meter.ended());
        prop_assert!(meter.exposure() >= meter.tally().tokens.output || meter.tally().reported);
        prop_assert!(str::from_utf8(&ending).is_ok());
    }
}

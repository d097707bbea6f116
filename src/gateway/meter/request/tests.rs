use proptest::prelude::*;

use super::*;
use crate::pricing::PriceList;

fn read(endpoint: Endpoint, body: &str) -> Result<Inspection, BadRequest> {
    Inspection::read(endpoint, body.as_bytes(), &config::Metering::default())
}

fn good(endpoint: Endpoint, body: &str) -> Inspection {
    read(endpoint, body).unwrap_or_else(|error| panic!("{body}: {error}"))
}

fn param(endpoint: Endpoint, body: &str) -> Option<&'static str> {
    read(endpoint, body).expect_err(body).param
}

fn micro(micro: i64) -> Credits {
    Credits::from_micro(micro).unwrap()
}

fn price() -> Price {
    let model = config::ModelPrice {
        model: "*".into(),
        input_per_million: Credits::whole(2),
        output_per_million: Credits::whole(8),
        max_output_tokens: 4_096,
        ..config::ModelPrice::default()
    };
    let list = config::Price { per_request: Credits::ZERO, models: vec![model], ..config::Price::default() };
    PriceList::new(&list).unwrap().price(Some("m")).unwrap()
}

fn forwarded(endpoint: Endpoint, body: &str, limit: Option<u64>) -> String {
    let inspection = good(endpoint, body);
    String::from_utf8(inspection.forward_body(Bytes::copy_from_slice(body.as_bytes()), limit).to_vec()).unwrap()
}

/// failures 9: `max_tokens=1` with `max_completion_tokens=10000` reserves almost nothing (litellm PR#37001).
#[test]
fn the_largest_limit_counts() {
    let body = r#"{"model":"m","max_tokens":1,"max_completion_tokens":10000,"n":3,"messages":[]}"#;
    assert_eq!(good(Endpoint::Chat, body).upper_tokens(&price(), None).output, 30_000);
    let escaped = r#"{"model":"m","max_tokens":1,"max\u005fcompletion\u005Ftokens":10000,"messages":[]}"#;
    assert_eq!(good(Endpoint::Chat, escaped).output_limit, Some(10_000));
}

#[test]
fn a_limit_that_the_endpoint_ignores_limits_nothing() {
    let body = r#"{"model":"m","max_tokens":1,"input":"hi"}"#;
    assert_eq!(good(Endpoint::Responses, body).upper_tokens(&price(), None).output, 4_096);
    assert_eq!(
        forwarded(Endpoint::Responses, body, Some(100)),
        r#"{"max_output_tokens":100,"model":"m","max_tokens":1,"input":"hi"}"#
    );
    let none = good(Endpoint::Chat, r#"{"model":"m","max_tokens":null}"#);
    assert_eq!((none.output_limit, none.upper_tokens(&price(), None).output), (None, 4_096));
}

#[test]
fn what_cannot_be_priced_is_refused_and_named() {
    let chat = |rest: &str| param(Endpoint::Chat, &format!("{{\"model\":\"m\",{rest}}}"));
    for limit in
        ["-1", "9223372036854775808", "18446744073709551616", "1.5", "1e3", "\"10\"", "true", "[]", "4294967296"]
    {
        for name in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
            assert_eq!(chat(&format!("\"{name}\":{limit}")), Some(name), "{limit}");
        }
    }
    for n in ["0", "129", "-1", "1.0", "\"1\""] {
        assert_eq!(chat(&format!("\"n\":{n}")), Some("n"), "{n}");
    }
    assert_eq!(chat("\"stream\":1"), Some("stream"));
    assert_eq!(chat("\"stream\":\"true\""), Some("stream"));
    assert_eq!(chat("\"stream\":true,\"stream_options\":[]"), Some("stream_options"));
    assert_eq!(chat("\"stream\":true,\"stream_options\":{\"include_usage\":1}"), Some("stream_options"));
    assert_eq!(
        chat("\"stream\":true,\"stream_options\":{\"include_usage\":false,\"include\\u005fusage\":true}"),
        Some("stream_options")
    );
    assert_eq!(chat("\"model\":\"n\""), Some("model"), "twice");
    assert_eq!(chat("\"max_tokens\":1,\"max\\u005ftokens\":2"), Some("max_tokens"), "twice, once escaped");
    assert_eq!(chat("\"Max_Tokens\":100000"), Some("max_tokens"), "a parser that ignores case would take it");
    assert_eq!(chat("\"max_to\u{212a}en\u{17f}\":100000"), Some("max_tokens"), "so would one that folds Unicode");
    assert_eq!(param(Endpoint::Chat, "{\"messages\":[]}"), Some("model"));
    assert_eq!(param(Endpoint::Chat, "{\"model\":7}"), Some("model"));
    assert_eq!(param(Endpoint::Chat, "{\"model\":\"\"}"), Some("model"));
    assert_eq!(param(Endpoint::Chat, &format!("{{\"model\":\"{}\"}}", "m".repeat(257))), Some("model"));
    assert_eq!(param(Endpoint::Chat, "{\"model\":\"a\\nb\"}"), Some("model"));
    assert_eq!(param(Endpoint::Messages, "{\"model\":\"m\"}"), Some("max_tokens"));
    assert_eq!(param(Endpoint::Responses, "{\"model\":\"m\",\"background\":true}"), Some("background"));
    assert_eq!(param(Endpoint::Embeddings, "{\"model\":\"m\",\"input\":{}}"), Some("input"));
    assert_eq!(good(Endpoint::Images, "{\"prompt\":\"a\"}").model, None);
}

#[test]
fn what_is_no_json_object_is_refused() {
    for body in
        ["", "{", "nul", "[]", "\"a\"", "1", "{\"model\":\"m\"} x", "{\"model\":\"m\",}", "{\"model\":NaN}", "{'a':1}"]
    {
        assert_eq!(param(Endpoint::Chat, body), None, "{body}");
    }
    assert!(Inspection::read(Endpoint::Chat, b"{\"model\":\"\xff\"}", &config::Metering::default()).is_err());
    let deep = format!("{{\"model\":\"m\",\"messages\":{}{}}}", "[{\"content\":".repeat(5_000), "}]".repeat(5_000));
    assert!(read(Endpoint::Chat, &deep).is_err());
    let deep = format!("{{\"model\":\"m\",\"other\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(read(Endpoint::Chat, &deep).is_ok(), "what is not looked at is the upstream's matter");
}

#[test]
fn usage_of_a_stream_is_asked_for_and_nothing_else_touched() {
    let cases = [
        (r#"{"model":"m","stream":true}"#, r#"{"stream_options":{"include_usage":true},"model":"m","stream":true}"#),
        (
            "\n{ \"model\" : \"m\",\"stream\":true , \"stream_options\" : null }",
            "\n{\"stream_options\":{\"include_usage\":true}, \"model\" : \"m\"",
        ),
        (
            r#"{"model":"m","stream":true,"stream_options":{ }}"#,
            r#"{"model":"m","stream":true,"stream_options":{"include_usage":true }}"#,
        ),
        (
            r#"{"model":"m","stream":true,"stream_options":{"x":1}}"#,
            r#"{"model":"m","stream":true,"stream_options":{"include_usage":true,"x":1}}"#,
        ),
        (
            r#"{"model":"m","stream":true,"stream\u005foptions":{"x":1,"include\u005fusage": false }}"#,
            r#"{"model":"m","stream":true,"stream\u005foptions":{"x":1,"include\u005fusage": true }}"#,
        ),
    ];
    for (index, (body, expected)) in cases.into_iter().enumerate() {
        assert!(!good(Endpoint::Chat, body).wants_usage);
        if index == 1 {
            let expected = "\n{ \"model\" : \"m\",\"stream\":true , \"stream_options\" : {\"include_usage\":true} }";
            assert_eq!(forwarded(Endpoint::Completions, body, None), expected);
        } else {
            assert_eq!(forwarded(Endpoint::Chat, body, None), expected);
        }
    }
    for (endpoint, same) in [
        (Endpoint::Chat, r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#),
        (Endpoint::Chat, r#"{"model":"m","stream":false}"#),
        (Endpoint::Responses, r#"{"model":"m","stream":true}"#),
        (Endpoint::Messages, r#"{"model":"m","stream":true,"max_tokens":1}"#),
    ] {
        let inspection = good(endpoint, same);
        let original = Bytes::copy_from_slice(same.as_bytes());
        let forwarded = inspection.forward_body(original.clone(), None);
        assert_eq!(forwarded.as_ptr(), original.as_ptr(), "not even copied");
        assert_eq!(inspection.wants_usage, same.contains("include_usage"));
    }
}

#[test]
fn a_clamped_limit_is_written_where_the_client_wrote_it() {
    let cases = [
        (Endpoint::Chat, r#"{"model":"m","max_tokens": 500}"#, r#"{"model":"m","max_tokens": 7}"#),
        (
            Endpoint::Chat,
            r#"{"max_tokens":5,"model":"m","max_completion_tokens":500}"#,
            r#"{"max_tokens":5,"model":"m","max_completion_tokens":7}"#,
        ),
        (Endpoint::Chat, r#"{"model":"m"}"#, r#"{"max_completion_tokens":7,"model":"m"}"#),
        (Endpoint::Chat, r#"{"model":"m","max_completion_tokens":null}"#, r#"{"model":"m","max_completion_tokens":7}"#),
        (Endpoint::Completions, r#"{"model":"m"}"#, r#"{"max_tokens":7,"model":"m"}"#),
        (Endpoint::Messages, r#"{"model":"m","max\u005ftokens":50}"#, r#"{"model":"m","max\u005ftokens":7}"#),
        (Endpoint::Embeddings, r#"{"model":"m"}"#, r#"{"model":"m"}"#),
    ];
    for (endpoint, body, expected) in cases {
        assert_eq!(forwarded(endpoint, body, Some(7)), expected);
    }
}

#[test]
fn what_the_balance_affords_is_shared_by_the_choices() {
    let inspection = good(Endpoint::Chat, r#"{"model":"m","n":4,"max_tokens":1000}"#);
    let price = price();
    let all = price.upper_bound(inspection.upper_tokens(&price, None));
    assert_eq!(inspection.affordable_limit(&price, all), Some(1_000));
    let half = micro(all.micro() / 2);
    let limit = inspection.affordable_limit(&price, half).unwrap();
    assert!(price.upper_bound(inspection.upper_tokens(&price, Some(limit))) <= half);
    assert!(price.upper_bound(inspection.upper_tokens(&price, Some(limit + 1))) > half);
    assert_eq!(inspection.affordable_limit(&price, micro(1)), None);
    let thinking = r#"{"model":"m","max_tokens":4096,"thinking":{"type":"enabled","budget_tokens":2048}}"#;
    let thinking = good(Endpoint::Messages, thinking);
    assert_eq!(thinking.affordable_limit(&price, micro(8 * 2_000)), None, "less than it may think");
    assert!(thinking.affordable_limit(&price, micro(8 * 3_000)).is_some());
}

#[test]
fn images_count_by_their_token_bound_and_not_their_bytes() {
    let data = "A".repeat(300_000);
    let body = format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{data}"}}}}]}}]}}"#
    );
    let tokens = good(Endpoint::Chat, &body).input_tokens;
    assert!((2_000..2_200).contains(&tokens), "{tokens}");
    let body = format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":[{{"type":"text","text":"data:image/png;base64,{data}"}}]}}]}}"#
    );
    assert!(good(Endpoint::Chat, &body).input_tokens > 150_000);
}

#[test]
fn tokens_and_prompts_are_counted() {
    let embeddings = good(Endpoint::Embeddings, r#"{"model":"m","input":[[100000,100000,100000]]}"#);
    let rest = r#"{"model":"m","input":}"#.len() as u64;
    assert_eq!(embeddings.input_tokens, rest.div_ceil(2) + 3 + 4);
    assert_eq!(embeddings.upper_tokens(&price(), None).output, 0);
    let completions =
        good(Endpoint::Completions, r#"{"model":"m","prompt":["a","b"],"n":2,"best_of":3,"max_tokens":10}"#);
    assert_eq!(completions.upper_tokens(&price(), None).output, 60);
    let images = good(Endpoint::Images, r#"{"model":"m","prompt":"a","n":3}"#);
    assert_eq!(
        images.upper_tokens(&price(), None),
        Tokens { input: images.input_tokens, cached: 0, output: 12_288, images: 3 }
    );
}

#[test]
fn what_the_upstream_adds_is_bounded() {
    for (endpoint, rest) in [
        (Endpoint::Responses, r#""previous_response_id":"r""#),
        (Endpoint::Responses, r#""prompt":{"id":"p"}"#),
        (Endpoint::Responses, r#""tools":[{"type":"web_search"}]"#),
        (Endpoint::Chat, r#""web_search_options":{}"#),
        (Endpoint::Messages, r#""max_tokens":1,"tools":[{"type":"web_search_20250305","name":"s"}]"#),
    ] {
        assert!(good(endpoint, &format!("{{\"model\":\"m\",{rest}}}")).input_tokens > ELSEWHERE_TOKENS, "{rest}");
    }
    let plain = r#"{"model":"m","max_tokens":1,"tools":[{"name":"a"},{"type":"custom","name":"b"}]}"#;
    let tokens = good(Endpoint::Messages, plain).input_tokens;
    assert!((1_000..1_100).contains(&tokens), "{tokens}");
}

/// One member of a body, by name and JSON value.
fn member() -> impl Strategy<Value = (String, String)> {
    let name = prop::sample::select(vec![
        "model",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "n",
        "best_of",
        "messages",
        "input",
        "prompt",
        "tools",
        "background",
        "user",
        "temperature",
        "thinking",
    ]);
    let value = prop::sample::select(vec![
        "null",
        "true",
        "false",
        "0",
        "1",
        "17",
        "-1",
        "1.5",
        "9223372036854775808",
        "\"m\"",
        "[]",
        "{}",
        "{\"include_usage\":false}",
        "[\"a\",\"b\"]",
        "[1,2]",
        "[{\"role\":\"user\",\"content\":\"hi\"}]",
        "[{\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,AA\"}}]}]",
    ]);
    (name.prop_map(str::to_owned), value.prop_map(str::to_owned))
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    prop::sample::select(vec![
        Endpoint::Chat,
        Endpoint::Completions,
        Endpoint::Responses,
        Endpoint::Embeddings,
        Endpoint::Images,
        Endpoint::Messages,
    ])
}

proptest! {
    #[test]
    fn any_body_is_read_without_a_panic_and_edits_hold(
        endpoint in endpoint(),
        members in prop::collection::vec(member(), 0..8),
        limit in prop::option::of(0_u64..5_000),
    ) {
        let inner: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        let body = format!(" {{ {} }}", inner.join(" ,"));
        let Ok(inspection) = read(endpoint, &body) else { return Ok(()) };
        let edited = inspection.forward_body(Bytes::from(body.clone()), limit);
        let before: serde_json::Value = serde_json::from_str(&body).unwrap();
        let mut after: serde_json::Value = serde_json::from_slice(&edited).unwrap();
        let again = Inspection::read(endpoint, &edited, &config::Metering::default()).unwrap();
        if let (Some(limit), true) = (limit, inspection.has_output) {
            prop_assert!(again.output_limit.unwrap() <= limit);
        }
        if inspection.stream && matches!(endpoint, Endpoint::Chat | Endpoint::Completions) {
            prop_assert!(again.wants_usage);
        }
        for name in ["stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens"] {
            if before.get(name) != after.get(name) {
                let restored = before.get(name).cloned();
                let members = after.as_object_mut().unwrap();
                match restored {
                    Some(value) => members.insert(name.to_owned(), value),
                    None => members.remove(name),
                };
            }
        }
        prop_assert_eq!(before, after);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(endpoint in endpoint(), body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Inspection::read(endpoint, &body, &config::Metering::default());
    }

    #[test]
    fn the_bound_holds_for_usage_that_honours_the_limit(
        text in ".{0,400}",
        n in 1_u64..=4,
        limit in 1_u64..2_000,
        used in 0_u64..2_000,
    ) {
        let body = serde_json::json!({"model": "m", "n": n, "max_tokens": limit,
            "messages": [{"role": "user", "content": text}]}).to_string();
        let inspection = good(Endpoint::Chat, &body);
        let price = price();
        // The densest text that tokenizers know of is about a token for two bytes.
        let reported = Tokens {
            input: (text.len() as u64).div_ceil(2) + 8,
            cached: 0,
            output: used.min(limit) * n,
            images: 0,
        };
        prop_assert!(price.cost(reported) <= price.upper_bound(inspection.upper_tokens(&price, None)));
    }
}

/// What a price by model does not cover is refused there.
#[test]
fn only_the_named_model_at_its_usual_price_is_as_listed() {
    let param = |members: &str| {
        let body = format!(r#"{{"model":"m","messages":[],{members}}}"#);
        good(Endpoint::Chat, &body).as_listed().err().and_then(|bad| bad.param)
    };
    assert_eq!(param(r#""models":["dearer"]"#), Some("models"));
    assert_eq!(param(r#""fallbacks":["dearer"]"#), Some("fallbacks"));
    assert_eq!(param(r#""service_tier":"\u0070riority""#), Some("service_tier"));
    assert_eq!(param(r#""speed":"fast""#), Some("speed"));
    assert_eq!(param(r#""models":null,"service_tier":"auto","speed":"standard""#), None);
}

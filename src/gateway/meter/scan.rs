//! Finds members of a JSON object's top level without reading the rest of it.

/// The values of `names` as they stand at the top level of `json`; a member that is not there is `None`. `None` in all
/// where that cannot be said for sure: no object, a name that comes twice or is written with escapes. What is skipped is
/// followed through its texts and brackets, and not checked further.
pub(super) fn members<'j, const N: usize>(json: &'j [u8], names: [&str; N]) -> Option<[Option<&'j [u8]>; N]> {
    let mut found = [None; N];
    let mut at = space(json, 0);
    if json.get(at) != Some(&b'{') {
        return None;
    }
    at = space(json, at + 1);
    if json.get(at) == Some(&b'}') {
        return (space(json, at + 1) == json.len()).then_some(found);
    }
    loop {
        let name = at;
        at = text(json, at)?;
        let name = json.get(name + 1..at - 1)?;
        if memchr::memchr(b'\\', name).is_some() {
            return None;
        }
        at = space(json, at);
        if json.get(at) != Some(&b':') {
            return None;
        }
        let begin = space(json, at + 1);
        at = value(json, begin)?;
        if let Some(index) = names.iter().position(|wanted| wanted.as_bytes() == name)
            && found[index].replace(json.get(begin..at)?).is_some()
        {
            return None;
        }
        at = space(json, at);
        match json.get(at)? {
            b',' => at = space(json, at + 1),
            b'}' => return (space(json, at + 1) == json.len()).then_some(found),
            _ => return None,
        }
    }
}

/// The next place that is no white space.
fn space(json: &[u8], at: usize) -> usize {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    at + json.get(at..).unwrap_or_default().iter().take_while(|byte| blank(byte)).count()
}

/// Where the text that begins here ends.
fn text(json: &[u8], at: usize) -> Option<usize> {
    if json.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', json.get(at..)?)?;
        if json.get(at) == Some(&b'"') {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// Where the value that begins here ends.
fn value(json: &[u8], begin: usize) -> Option<usize> {
    let mut at = begin;
    let mut depth = 0_usize;
    loop {
        match json.get(at)? {
            b'"' => {
                at = text(json, at)?;
                if depth == 0 {
                    return Some(at);
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ if depth == 0 => {
                let end = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r');
                return Some(at + json.get(at..)?.iter().position(end)?).filter(|end| *end > begin);
            }
            _ => {}
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str) -> Option<[Option<&str>; 2]> {
        let found = members(json.as_bytes(), ["usage", "error"])?;
        Some(found.map(|value| value.map(|value| str::from_utf8(value).unwrap())))
    }

    #[test]
    fn members_of_the_top_level_are_found() {
        assert_eq!(found("{}"), Some([None, None]));
        assert_eq!(found(" { } \n"), Some([None, None]));
        assert_eq!(found(r#"{"error":null,"usage":{"a":[1,"}"]}}"#), Some([Some(r#"{"a":[1,"}"]}"#), Some("null")]));
        let nested = r#"{"choices":[{"usage":1,"text":"\"usage\":2 \\"}] , "x" : 12.5e3, "usage" : true }"#;
        assert_eq!(found(nested), Some([Some("true"), None]));
        assert_eq!(found(r#"{"usage":"a\"b"}"#), Some([Some(r#""a\"b""#), None]));
    }

    #[test]
    fn what_is_not_sure_is_not_answered() {
        for json in [
            "",
            "[]",
            "null",
            "{",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":}",
            "{\"a\":1",
            "{\"a\":1}}",
            "{\"a\":1} x",
            "{\"a\" 1}",
            "{\"a\":1,}",
            "{a:1}",
            "{\"usage\":1,\"usage\":2}",
            "{\"us\\u0061ge\":1}",
            "{\"a\":\"b}",
            "{\"a\":[}",
            "{\"a\":\"b\\",
            "{\"a\":1]",
        ] {
            assert_eq!(found(json), None, "{json}");
        }
    }
}

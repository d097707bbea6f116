//! A page's files, built by Vite and compiled in: the script and the style under names that tell their content, so that
//! browsers keep them for ever, and the HTML that names them, which nobody keeps.

use std::io::Write;
use std::sync::OnceLock;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

/// Characters of a content's hash in its name.
const HASH_CHARS: usize = 12;
const FOR_EVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// Where the HTML takes what the page must know before its first call.
const FACTS: &str = "content=\"{}\"";

/// What Vite built.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Built {
    pub(crate) html: &'static str,
    pub(crate) script: &'static [u8],
    pub(crate) style: &'static [u8],
}

#[derive(Debug)]
pub(crate) struct Site {
    html: Bytes,
    policy: HeaderValue,
    files: [File; 2],
}

#[derive(Debug)]
struct File {
    name: String,
    kind: &'static str,
    plain: &'static [u8],
    zipped: OnceLock<Bytes>,
}

impl File {
    fn new(kind: &'static str, ending: &str, plain: &'static [u8]) -> File {
        let hash: String = Sha256::digest(plain).iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("app-{}.{ending}", &hash[..HASH_CHARS]);
        File { name, kind, plain, zipped: OnceLock::new() }
    }

    /// Made when somebody first asks for it.
    fn zipped(&self) -> Bytes {
        let zip = || {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            // Into memory, which does not fail; where it did, the plain file goes out.
            encoder.write_all(self.plain).and_then(|()| encoder.finish()).map(Bytes::from).unwrap_or_default()
        };
        self.zipped.get_or_init(zip).clone()
    }
}

impl Site {
    /// A page under `base`, which begins with `/`. `facts` is what its scripts find in the HTML.
    pub(crate) fn new(built: &Built, base: &str, facts: &serde_json::Value, frame_ancestors: &[String]) -> Site {
        let script = File::new("text/javascript; charset=utf-8", "js", built.script);
        let style = File::new("text/css; charset=utf-8", "css", built.style);
        let facts = facts.to_string().replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
        let html = built
            .html
            .replace("./app.js", &format!("{base}/assets/{}", script.name))
            .replace("./app.css", &format!("{base}/assets/{}", style.name))
            .replacen(FACTS, &format!("content=\"{facts}\""), 1);
        let ancestors = if frame_ancestors.is_empty() { "'none'".to_owned() } else { frame_ancestors.join(" ") };
        let policy = format!(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
             form-action 'self'; base-uri 'none'; frame-ancestors {ancestors}; require-trusted-types-for 'script'"
        );
        // Validated as the settings are read; with no policy nothing may load at all.
        let policy = HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
        Site { html: html.into(), policy, files: [script, style] }
    }

    pub(crate) fn html(&self) -> Response {
        let mut response = Body::from(self.html.clone()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        for (name, value) in [
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        response
    }

    /// A file by its name with the hash; `None` for any other name.
    pub(crate) fn asset(&self, name: &str, asked: &HeaderMap) -> Option<Response> {
        let file = self.files.iter().find(|file| file.name == name)?;
        let zipped = Some(file.zipped()).filter(|zipped| takes_gzip(asked) && !zipped.is_empty());
        let encoded = zipped.is_some();
        let mut response = Body::from(zipped.unwrap_or(Bytes::from_static(file.plain))).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(file.kind));
        headers.insert(CACHE_CONTROL, FOR_EVER);
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if encoded {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Some(response)
    }
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        name.trim().eq_ignore_ascii_case("gzip") && !matches!(weight.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILT: Built = Built {
        html: "<meta name=\"faregate\" content=\"{}\"><link href=\"./app.css\"><script src=\"./app.js\"></script>",
        script: b"let a = 1; let b = 1; let c = 1; let d = 1;",
        style: b"p {}",
    };

    #[test]
    fn names_tell_the_content_and_facts_cannot_leave_their_attribute() {
        let site = Site::new(&BUILT, "/billing", &serde_json::json!({"api": "/a\"><script>&"}), &[]);
        let html = String::from_utf8(site.html.to_vec()).unwrap();
        assert!(html.contains(&format!("src=\"/billing/assets/{}\"", site.files[0].name)), "{html}");
        assert!(html.contains("/a\\&quot;>&lt;script>&amp;"), "{html}");
        assert!(!html.contains("./app"), "{html}");
        let other = Site::new(&Built { script: b"let a = 2;", ..BUILT }, "/billing", &serde_json::json!({}), &[]);
        assert_ne!(other.files[0].name, site.files[0].name);
        assert_eq!(other.files[1].name, site.files[1].name);
    }

    #[test]
    fn files_are_kept_and_zipped_for_who_takes_that() {
        let site = Site::new(&BUILT, "/billing", &serde_json::json!({}), &[]);
        let name = site.files[0].name.clone();
        let ask = |coding: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(coding));
            site.asset(&name, &headers).unwrap()
        };
        assert_eq!(ask("br, gzip;q=0.8").headers()[CONTENT_ENCODING], "gzip");
        assert!(ask("gzip;q=0").headers().get(CONTENT_ENCODING).is_none());
        assert_eq!(ask("").headers()[CACHE_CONTROL], FOR_EVER);
        assert!(site.asset("app.js", &HeaderMap::new()).is_none());
    }

    #[test]
    fn the_built_pages_name_their_files() {
        for built in [super::super::BUILT, crate::admin::CONSOLE] {
            assert!(built.html.contains("./app.js") && built.html.contains("./app.css") && built.html.contains(FACTS));
        }
    }
}

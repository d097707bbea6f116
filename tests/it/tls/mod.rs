//! The way to Postgres and to Redis, with TLS and passwords: who is believed, and who is let in.

mod both;
mod postgres;
mod redis;

/// What a file or a password looks like in a URL.
fn escaped(text: impl AsRef<std::path::Path>) -> String {
    let text = text.as_ref().to_str().unwrap();
    text.replace('%', "%25").replace('/', "%2F").replace('@', "%40").replace(':', "%3A").replace('#', "%23")
}

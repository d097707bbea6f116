//! What keeps strangers out of the pages, guard by guard: each test fails where its guard is taken out.

use std::time::Duration;

use faregate_sim::stack_auth::{Person, sign};

use super::*;
use crate::support::stack_auth::WEBHOOK_SECRET;
use crate::support::{StackAuth, eventually};

/// Long enough to be used once, short enough to wait for.
const SHORT_MS: u64 = 1_500;
const SOON: Duration = Duration::from_secs(10);

impl Page {
    async fn open_link(&self, link: &str) -> Answer {
        self.page(Method::POST, "/billing/session", &[OWN], Some(json!({ "link": link }))).await
    }

    async fn check(&self, cookie: &str) -> Answer {
        self.page(Method::GET, "/api/credits/check", &[OWN, ("cookie", cookie)], None).await
    }

    async fn open_console(&self, token: &str) -> Answer {
        self.console(Method::POST, "/console/session", &[CONSOLE], Some(json!({ "token": token }))).await
    }

    async fn users(&self, cookie: &str) -> StatusCode {
        self.console(Method::GET, "/admin/v1/users", &[CONSOLE, ("cookie", cookie)], None).await.status
    }
}

fn trusting(issuer: &StackAuth) -> Options {
    Options::new()
        .set("stack.project_id", issuer.project())
        .set("stack.base_url", issuer.url())
        .env("FAREGATE_STACK_WEBHOOK_SECRET", WEBHOOK_SECRET)
}

#[tokio::test]
async fn pages_load_and_call_nothing_but_their_own_and_nobody_frames_them() {
    let page = Page::open(Options::new().set("page.frame_ancestors", "https://app.example.com"));
    let policy = |ancestors: &str| {
        format!(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
             form-action 'self'; base-uri 'none'; frame-ancestors {ancestors}; require-trusted-types-for 'script'"
        )
    };
    let billing = page.page(Method::GET, "/billing", &[], None).await;
    let console = page.console(Method::GET, "/console", &[], None).await;
    assert_eq!(billing.header("content-security-policy"), policy("https://app.example.com"));
    assert_eq!(console.header("content-security-policy"), policy("'none'"));
    for html in [&billing, &console] {
        assert_eq!(html.header("x-content-type-options"), "nosniff");
        assert_eq!(html.header("referrer-policy"), "same-origin");
        assert_eq!(html.header("cross-origin-opener-policy"), "same-origin");
        assert_eq!(html.header("cross-origin-resource-policy"), "same-origin");
        assert_eq!(html.header("cache-control"), "no-cache");
        assert!(html.header("permissions-policy").contains("camera=()"));
        let text = html.text();
        assert!(!text.contains("=\"http") && !text.contains("=\"//"), "{text}");
        assert!(!text.contains("<style") && !text.contains(" style=") && !text.contains(" onload="), "{text}");
        assert!(text.matches("<script").count() == text.matches("<script type=\"module\"").count(), "{text}");
    }
}

#[tokio::test]
async fn a_link_that_has_expired_opens_nothing() {
    // It has expired by the time that it can be sent back.
    let page = Page::open(Options::new().set("page.link_ms", 1));
    page.faregate.user("ann", "5").await;
    let link = page.link("ann").await;
    let late = page.open_link(&link).await;
    assert_eq!(late.status, StatusCode::FORBIDDEN, "{}", late.text());
    assert!(late.headers.get("set-cookie").is_none());
}

#[tokio::test]
async fn a_session_ends_by_itself_in_the_browser_and_here() {
    let page = Page::open(Options::new().set("page.session_ms", SHORT_MS).set("page.console_session_ms", SHORT_MS));
    page.faregate.user("ann", "5").await;
    let link = page.link("ann").await;
    let begun = page.open_link(&link).await;
    assert!(begun.header("set-cookie").contains("Max-Age=1;"), "{}", begun.header("set-cookie"));
    let (ann, operator) = (cookie(&begun), cookie(&page.open_console(page.faregate.admin_token()).await));
    let ended = || async {
        let statuses = (page.check(&ann).await.status, page.users(&operator).await);
        (statuses == (StatusCode::UNAUTHORIZED, StatusCode::UNAUTHORIZED)).then_some(())
    };
    eventually(SOON, "both sessions end", ended).await;
    let standing = page.page(Method::GET, "/billing/session", &[OWN, ("cookie", &ann)], None).await;
    assert!(standing.json()["user"].is_null(), "{}", standing.text());
}

/// Made with a token of the issuer's; closed by the issuer's word.
#[tokio::test]
async fn the_session_of_a_user_who_is_gone_opens_nothing() {
    let issuer = StackAuth::start();
    let page = Page::open(trusting(&issuer));
    let person = Person::new("3b2f6d9e-0001-4000-8000-00000000000a", "ann@example.com");
    let token = issuer.token(&person);
    let by_token = [OWN, ("x-stack-access-token", token.as_str())];
    let foreign = [("x-stack-access-token", token.as_str())];
    let refused = page.page(Method::POST, "/billing/session", &foreign, Some(json!({}))).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "without the page's header");
    let begun = page.page(Method::POST, "/billing/session", &by_token, Some(json!({}))).await;
    assert_eq!(begun.status, StatusCode::OK, "{}", begun.text());
    assert_eq!(begun.json()["user"]["email"], "ann@example.com");
    let cookie = cookie(&begun);
    assert_eq!(page.check(&cookie).await.json()["available"], 5);
    let link = page.link(&person.id).await;

    let message = issuer.message("user.deleted", &person);
    let at = jiff::Timestamp::now().as_second();
    let signature = sign(WEBHOOK_SECRET, &message.id, at, &message.body);
    let at = at.to_string();
    let signed = [("svix-id", message.id.as_str()), ("svix-timestamp", &at), ("svix-signature", &signature)];
    let body = serde_json::from_str(&message.body).unwrap();
    let told = page.page(Method::POST, "/api/auth/webhook", &signed, Some(body)).await;
    assert_eq!(told.status, StatusCode::OK, "{}", told.text());

    let out = || async { (!page.check(&cookie).await.status.is_success()).then_some(()) };
    eventually(SOON, "the session opens nothing", out).await;
    let own = [OWN, ("cookie", cookie.as_str())];
    for (method, path) in [(Method::GET, "/billing/session"), (Method::GET, "/api/keys"), (Method::GET, "/api/usage")] {
        let answer = page.page(method, path, &own, None).await;
        assert!(answer.status.is_client_error(), "{path}: {} {}", answer.status, answer.text());
    }
    for begun in
        [page.page(Method::POST, "/billing/session", &by_token, Some(json!({}))).await, page.open_link(&link).await]
    {
        assert!(begun.status.is_client_error(), "{}", begun.text());
        assert!(begun.headers.get("set-cookie").is_none());
    }
}

#[tokio::test]
async fn only_a_token_that_the_issuer_signed_signs_in() {
    let (issuer, other) = (StackAuth::start(), StackAuth::start());
    let page = Page::open(trusting(&issuer));
    let person = Person::new("3b2f6d9e-0001-4000-8000-00000000000a", "ann@example.com");
    for token in [other.token(&person), "not.a.token".to_owned(), String::new()] {
        let headers = [OWN, ("x-stack-access-token", token.as_str())];
        let begun = page.page(Method::POST, "/billing/session", &headers, Some(json!({}))).await;
        assert_eq!(begun.status, StatusCode::UNAUTHORIZED, "{}", begun.text());
        assert!(begun.headers.get("set-cookie").is_none());
    }
}

/// What the browser carries is of no use to who reads the store, and what an operator's browser carries is of none once
/// the admin token is another.
#[tokio::test]
async fn sessions_are_kept_as_hashes_and_end_with_the_admin_token() {
    let mut page = Page::open(Options::new());
    page.faregate.user("ann", "5").await;
    let (ann, link) = (page.sign_in("ann").await, page.link("ann").await);
    let operator = cookie(&page.open_console(page.faregate.admin_token()).await);
    assert_eq!(page.users(&operator).await, StatusCode::OK);
    // The operator's is no user's session either.
    let as_user = operator.replace("fg_console", "fg_session");
    assert_eq!(page.check(&as_user).await.status, StatusCode::UNAUTHORIZED);

    page.faregate.reconfigure(|options| options.env("FAREGATE_ADMIN_TOKEN", "another-admin-token-of-the-tests"));
    page.faregate.terminate();
    let secrets = [&ann, &operator].map(|cookie| cookie.split_once('=').unwrap().1.to_owned());
    let mut read = 0;
    for entry in std::fs::read_dir(page.faregate.data_dir()).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        read += bytes.len();
        for secret in secrets.iter().chain([&link]) {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "a secret is in {}", path.display());
        }
    }
    assert!(read > 10_000, "{read} bytes of data");

    page.faregate.restart();
    assert_eq!(page.users(&operator).await, StatusCode::UNAUTHORIZED);
    let old = page.open_console(page.faregate.admin_token()).await;
    assert_eq!(old.status, StatusCode::UNAUTHORIZED);
    assert_eq!(page.open_console("another-admin-token-of-the-tests").await.status, StatusCode::OK);
    assert_eq!(page.check(&ann).await.json()["available"], 5, "the user's session stands");
}

/// Every call of the operator's API, with everything but a session, and with a session but without the console's header.
#[tokio::test]
async fn no_call_of_the_operators_is_open_without_the_token() {
    let page = Page::open(Options::new());
    page.faregate.user("ann", "5").await;
    let operator = cookie(&page.open_console(page.faregate.admin_token()).await);
    let user = page.sign_in("ann").await;
    let secret = user.split_once('=').unwrap().1;
    let borrowed = format!("fg_console={secret}");
    let document = page.console(Method::GET, "/openapi.json", &[], None).await.json();
    let mut asked = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        if !path.starts_with("/admin/v1") {
            continue;
        }
        let path = path.replace("{id}", "ann").replace("{key}", "1");
        for method in operations.as_object().unwrap().keys() {
            if method == "parameters" {
                continue;
            }
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let callers: [&[(&str, &str)]; 6] = [
                &[],
                &[CONSOLE],
                &[("cookie", &operator)],
                &[CONSOLE, ("cookie", &borrowed)],
                &[CONSOLE, ("cookie", &operator), ("origin", "https://evil.example")],
                &[CONSOLE, ("cookie", &operator), ("authorization", "Bearer wrong")],
            ];
            for headers in callers {
                let answer = page.console(method.clone(), &path, headers, None).await;
                assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path} {headers:?}: {}", answer.text());
                asked += 1;
            }
        }
    }
    assert!(asked > 100, "{asked} calls");
    assert_eq!(page.users(&operator).await, StatusCode::OK);
}

/// Another site's form cannot sign anybody out either: not even the cookie is taken away.
#[tokio::test]
async fn nobody_is_signed_out_by_another_site() {
    let page = Page::open(Options::new());
    page.faregate.user("ann", "5").await;
    let ann = page.sign_in("ann").await;
    let operator = cookie(&page.open_console(page.faregate.admin_token()).await);
    let out = page.page(Method::DELETE, "/billing/session", &[("cookie", &ann)], None).await;
    assert_eq!(out.status, StatusCode::FORBIDDEN);
    assert!(out.headers.get("set-cookie").is_none());
    let foreign = [CONSOLE, ("cookie", operator.as_str()), ("sec-fetch-site", "cross-site")];
    let out = page.console(Method::DELETE, "/console/session", &foreign, None).await;
    assert_eq!(out.status, StatusCode::FORBIDDEN);
    assert!(out.headers.get("set-cookie").is_none());
    assert_eq!((page.check(&ann).await.status, page.users(&operator).await), (StatusCode::OK, StatusCode::OK));
}

/// A link that somebody was sent does not put them into the sender's account unasked; and what it replaces is over.
#[tokio::test]
async fn a_link_of_another_user_asks_first_and_ends_the_session_before() {
    let page = Page::open(Options::new());
    for user in ["ann", "eve"] {
        page.faregate.user(user, "5").await;
    }
    let first = page.sign_in("ann").await;
    let open = async |link: &str, cookie: &str, switch: bool| {
        let mut body = json!({ "link": link });
        if switch {
            body["switch"] = json!(true);
        }
        page.page(Method::POST, "/billing/session", &[OWN, ("cookie", cookie)], Some(body)).await
    };
    let sent = page.link("eve").await;
    let asked = open(&sent, &first, false).await;
    assert_eq!(asked.status, StatusCode::CONFLICT, "{}", asked.text());
    assert!(asked.headers.get("set-cookie").is_none());
    assert_eq!(page.check(&first).await.status, StatusCode::OK);
    // One's own link asks nothing.
    let own = open(&page.link("ann").await, &first, false).await;
    assert_eq!(own.json()["user"]["id"], "ann", "{}", own.text());
    let second = cookie(&own);
    assert_eq!(page.check(&first).await.status, StatusCode::UNAUTHORIZED, "it was replaced");
    // The link has not been used by asking.
    let switched = open(&sent, &second, true).await;
    assert_eq!(switched.json()["user"]["id"], "eve", "{}", switched.text());
    assert_eq!(page.check(&second).await.status, StatusCode::UNAUTHORIZED, "it was replaced");
    assert_eq!(page.check(&cookie(&switched)).await.status, StatusCode::OK);

    let before = cookie(&page.open_console(page.faregate.admin_token()).await);
    let token = Some(json!({ "token": page.faregate.admin_token() }));
    let again = page.console(Method::POST, "/console/session", &[CONSOLE, ("cookie", &before)], token).await;
    assert_eq!(page.users(&before).await, StatusCode::UNAUTHORIZED, "it was replaced");
    assert_eq!(page.users(&cookie(&again)).await, StatusCode::OK);
}

/// A call with credentials of its own is answered for those, and never for the cookie that comes along.
#[tokio::test]
async fn a_token_counts_before_the_session_by_whichever_header_it_comes() {
    let issuer = StackAuth::start();
    let page = Page::open(trusting(&issuer));
    page.faregate.user("ann", "7").await;
    let ann = page.sign_in("ann").await;
    let bob = issuer.token(&Person::new("3b2f6d9e-0001-4000-8000-00000000000b", "bob@example.com"));
    let object = format!(r#"{{"accessToken":"{bob}"}}"#);
    for (header, value) in [
        ("x-stack-access-token", &bob),
        ("x-hexclave-access-token", &bob),
        ("x-stack-auth", &object),
        ("x-hexclave-auth", &object),
    ] {
        let headers = [OWN, ("cookie", ann.as_str()), (header, value.as_str())];
        let check = page.page(Method::GET, "/api/credits/check", &headers, None).await;
        assert_eq!(check.json()["available"], 5, "{header}: {}", check.text());
        let begun = page.page(Method::POST, "/billing/session", &[OWN, (header, value)], Some(json!({}))).await;
        assert_eq!(begun.json()["user"]["email"], "bob@example.com", "{header}: {}", begun.text());
    }
}

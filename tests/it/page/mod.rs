//! The billing page and the console: who gets in, and what a session may do. What they look like is `make test-web`.

mod guards;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::support::http::Answer;
use crate::support::{Faregate, Options};

const OWN: (&str, &str) = ("x-faregate-page", "1");
const CONSOLE: (&str, &str) = ("x-faregate-console", "1");

struct Page {
    faregate: Faregate,
}

impl Page {
    fn open(options: Options) -> Page {
        Page { faregate: Faregate::start(options) }
    }

    async fn ask(&self, method: Method, url: &str, headers: &[(&str, &str)], body: Option<Value>) -> Answer {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        self.faregate.http.call(request.body(Full::new(body)).unwrap()).await
    }

    async fn page(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> Answer {
        self.ask(method, &self.faregate.url(path), headers, body).await
    }

    async fn console(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> Answer {
        self.ask(method, &format!("http://{}{path}", self.faregate.admin_addr()), headers, body).await
    }

    /// The secret of a new link for this user.
    async fn link(&self, user: &str) -> String {
        let made = self.faregate.admin(Method::POST, &format!("/admin/v1/users/{user}/billing-link"), None).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
        secret(&made)
    }

    /// Signs in by a link: the cookie as a browser sends it back.
    async fn sign_in(&self, user: &str) -> String {
        let link = self.link(user).await;
        let begun = self.page(Method::POST, "/billing/session", &[OWN], Some(json!({ "link": link }))).await;
        assert_eq!(begun.status, StatusCode::OK, "{}", begun.text());
        assert_eq!(begun.json()["user"]["id"], user);
        cookie(&begun)
    }
}

fn secret(made: &Answer) -> String {
    made.json()["url"].as_str().unwrap().split_once("#link=").unwrap().1.to_owned()
}

fn cookie(begun: &Answer) -> String {
    let set = begun.header("set-cookie");
    assert!(set.contains("HttpOnly") && set.contains("SameSite=Strict") && set.contains("Path=/;"), "{set}");
    set.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn the_page_is_there_with_its_files_and_lets_nobody_else_in() {
    let page = Page::open(Options::new());
    for path in ["/billing", "/billing/", "/billing?checkout=success"] {
        let html = page.page(Method::GET, path, &[], None).await;
        assert_eq!(html.status, StatusCode::OK);
        let policy = html.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        let text = html.text();
        let file = text.split("src=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        assert!(file.starts_with("/billing/assets/app-"), "{file}");
        let script = page.page(Method::GET, &file, &[], None).await;
        assert_eq!((script.status, script.header("content-type")), (StatusCode::OK, "text/javascript; charset=utf-8"));
        assert!(script.header("cache-control").contains("immutable"));
    }
    assert_eq!(page.page(Method::GET, "/billing/assets/app.js", &[], None).await.status, StatusCode::NOT_FOUND);
    assert_eq!(page.page(Method::GET, "/billing/other", &[], None).await.status, StatusCode::NOT_FOUND);
    let nobody = page.page(Method::GET, "/billing/session", &[OWN], None).await;
    assert_eq!((nobody.status, nobody.json()["user"].is_null()), (StatusCode::OK, true));
    assert_eq!(page.page(Method::GET, "/api/credits/check", &[OWN], None).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(page.page(Method::GET, "/api/plans", &[], None).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_link_opens_once_and_a_session_ends() {
    let page = Page::open(Options::new());
    page.faregate.user("ann", "5").await;
    let link = page.link("ann").await;
    let body = || Some(json!({ "link": link }));
    let foreign = page.page(Method::POST, "/billing/session", &[], body()).await;
    assert_eq!(foreign.status, StatusCode::FORBIDDEN, "without the page's header");
    let evil = [OWN, ("origin", "https://evil.example")];
    assert_eq!(page.page(Method::POST, "/billing/session", &evil, body()).await.status, StatusCode::FORBIDDEN);
    let begun = page.page(Method::POST, "/billing/session", &[OWN], body()).await;
    assert_eq!(begun.status, StatusCode::OK, "{}", begun.text());
    let cookie = cookie(&begun);
    let again = page.page(Method::POST, "/billing/session", &[OWN], body()).await;
    assert_eq!(again.status, StatusCode::FORBIDDEN, "{}", again.text());
    let ours = [OWN, ("cookie", cookie.as_str())];
    let check = page.page(Method::GET, "/api/credits/check", &ours, None).await;
    assert_eq!(check.json()["available"], 5, "{}", check.text());
    assert_eq!(page.page(Method::GET, "/billing/session", &ours, None).await.json()["user"]["id"], "ann");
    let out = page.page(Method::DELETE, "/billing/session", &ours, None).await;
    assert_eq!(out.status, StatusCode::NO_CONTENT);
    assert!(out.header("set-cookie").contains("Max-Age=0"));
    assert_eq!(page.page(Method::GET, "/api/credits/check", &ours, None).await.status, StatusCode::UNAUTHORIZED);
}

/// The cookie alone opens nothing: another site's request carries neither the header nor our origin.
#[tokio::test]
async fn another_site_cannot_use_a_session() {
    let page = Page::open(Options::new().set("cors.origins", "*"));
    page.faregate.user("ann", "5").await;
    let cookie = page.sign_in("ann").await;
    let deduct = || Some(json!({ "amount": 1 }));
    let bare = [("cookie", cookie.as_str())];
    assert_eq!(page.page(Method::POST, "/api/credits/deduct", &bare, deduct()).await.status, StatusCode::UNAUTHORIZED);
    for foreign in [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site"), ("origin", "null")] {
        let headers = [OWN, ("cookie", cookie.as_str()), foreign];
        let answer = page.page(Method::POST, "/api/credits/deduct", &headers, deduct()).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{foreign:?}");
    }
    let preflight = [("origin", "https://evil.example"), ("access-control-request-method", "POST")];
    let told = page.page(Method::OPTIONS, "/api/credits/deduct", &preflight, None).await;
    assert!(!told.header("access-control-allow-headers").contains("x-faregate-page"));
    assert!(told.headers.get("access-control-allow-credentials").is_none());
    let own = [OWN, ("cookie", cookie.as_str())];
    assert_eq!(page.page(Method::GET, "/api/credits/check", &own, None).await.json()["available"], 5);
}

#[tokio::test]
async fn a_service_key_makes_links_and_a_users_key_does_not() {
    let page = Page::open(Options::new().set("page.url", "https://pay.example.com/billing"));
    let key = page.faregate.user("ann", "5").await;
    let made = page.faregate.admin(Method::POST, "/admin/v1/keys", Some(json!({"name": "app"}))).await.json();
    let service = format!("Bearer {}", made["key"].as_str().unwrap());
    let headers = [("authorization", service.as_str()), ("x-faregate-user", "bob")];
    let made = page.page(Method::POST, "/api/billing/link", &headers, None).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    assert!(made.json()["url"].as_str().unwrap().starts_with("https://pay.example.com/billing#link="));
    let link = json!({ "link": secret(&made) });
    let begun = page.page(Method::POST, "/billing/session", &[OWN], Some(link)).await;
    assert_eq!(begun.json()["user"]["id"], "bob");
    let set = begun.header("set-cookie");
    assert!(set.starts_with("__Host-fg_session=") && set.ends_with("; Secure"), "{set}");
    let bearer = format!("Bearer {key}");
    let own = [("authorization", bearer.as_str())];
    assert_eq!(page.page(Method::POST, "/api/billing/link", &own, None).await.status, StatusCode::FORBIDDEN);
    // A key is no way to a session, either.
    let headers = [OWN, ("authorization", bearer.as_str())];
    let begun = page.page(Method::POST, "/billing/session", &headers, Some(json!({}))).await;
    assert_eq!(begun.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_console_opens_with_the_token_alone() {
    let page = Page::open(Options::new());
    page.faregate.user("ann", "5").await;
    assert_eq!(page.console(Method::GET, "/console", &[], None).await.status, StatusCode::OK);
    let token = |token: &str| Some(json!({ "token": token }));
    let wrong = page.console(Method::POST, "/console/session", &[CONSOLE], token("wrong")).await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    let right = page.faregate.admin_token().to_owned();
    let foreign = page.console(Method::POST, "/console/session", &[], token(&right)).await;
    assert_eq!(foreign.status, StatusCode::FORBIDDEN);
    let begun = page.console(Method::POST, "/console/session", &[CONSOLE], token(&right)).await;
    assert_eq!(begun.status, StatusCode::OK, "{}", begun.text());
    let cookie = cookie(&begun);
    let users = |search: &str| format!("/admin/v1/users?search={search}");
    let ours = [CONSOLE, ("cookie", cookie.as_str())];
    let found = page.console(Method::GET, &users("an"), &ours, None).await;
    assert_eq!(found.json()["data"][0]["id"], "ann", "{}", found.text());
    assert_eq!(page.console(Method::GET, &users("bo"), &ours, None).await.json()["data"], json!([]));
    let bare = [("cookie", cookie.as_str())];
    assert_eq!(page.console(Method::GET, &users("an"), &bare, None).await.status, StatusCode::UNAUTHORIZED);
    let evil = [CONSOLE, ("cookie", cookie.as_str()), ("origin", "https://evil.example")];
    let frozen = page.console(Method::POST, "/admin/v1/users/ann/freeze", &evil, None).await;
    assert_eq!(frozen.status, StatusCode::UNAUTHORIZED);
    // A user's session is no operator's.
    let theirs = page.sign_in("ann").await.replace("fg_session", "fg_console");
    let theirs = [CONSOLE, ("cookie", theirs.as_str())];
    assert_eq!(page.console(Method::GET, &users("an"), &theirs, None).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(page.console(Method::DELETE, "/console/session", &ours, None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(page.console(Method::GET, &users("an"), &ours, None).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_page_that_is_switched_off_is_not_there() {
    let page = Page::open(Options::new().set("page.enabled", "false"));
    page.faregate.user("ann", "5").await;
    assert_eq!(page.page(Method::GET, "/billing", &[], None).await.status, StatusCode::NOT_FOUND);
    let made = page.faregate.admin(Method::POST, "/admin/v1/users/ann/billing-link", None).await;
    assert_eq!(made.status, StatusCode::CONFLICT);
    assert_eq!(page.page(Method::GET, "/api/plans", &[], None).await.status, StatusCode::OK);
}

/// A stream that was opened with a session does not outlive it.
#[tokio::test]
async fn signing_out_ends_the_event_stream() {
    let page = Page::open(Options::new());
    page.faregate.user("ann", "5").await;
    let cookie = page.sign_in("ann").await;
    let request =
        Request::builder().uri(page.faregate.url("/api/events")).header(OWN.0, OWN.1).header("cookie", &cookie);
    let response = page.faregate.http.send(request.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap();
    assert!(first.into_data().is_ok_and(|data| !data.is_empty()));
    let ours = [OWN, ("cookie", cookie.as_str())];
    let out = page.page(Method::DELETE, "/billing/session", &ours, None).await;
    assert_eq!(out.status, StatusCode::NO_CONTENT);
    let ended = async { while let Some(Ok(_)) = body.frame().await {} };
    tokio::time::timeout(std::time::Duration::from_secs(20), ended).await.expect("the stream ends with its session");
}

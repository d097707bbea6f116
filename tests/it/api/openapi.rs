//! The OpenAPI documents say what is routed, all of it, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use faregate::api::openapi;
use http::Method;
use serde_json::Value;

use super::rig::{Ground, Rig, settings};

/// Paths of a document and their methods, those of the services behind the gateway left out.
fn documented(document: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let methods = |item: &Value| {
        let names = item.as_object().unwrap().keys().filter(|name| *name != "parameters");
        names.map(|name| name.to_uppercase()).collect()
    };
    let paths = document["paths"].as_object().unwrap().iter().filter(|(path, _)| !path.starts_with("/v1/"));
    paths.map(|(path, item)| (path.clone(), methods(item))).collect()
}

/// The methods that a path is served by: the router names them where it is asked by one that nobody has.
async fn served(rig: &Rig, admin: bool, path: &str) -> BTreeSet<String> {
    let path: String = path.replace(['{', '}'], "");
    let method = Method::from_bytes(b"PROPFIND").unwrap();
    let ask = if admin { rig.admin(method, &path) } else { rig.api(method, &path, "") };
    let answer = ask.send().await;
    assert_eq!(answer.status, 405, "{path}: {}", answer.text());
    let allow = answer.headers["allow"].to_str().unwrap();
    // RFC 9110 9.3.2: HEAD goes with GET, and needs no description of its own.
    allow.split(',').map(|name| name.trim().to_owned()).filter(|name| name != "HEAD").collect()
}

#[tokio::test]
async fn what_is_served_is_documented_and_what_is_documented_is_served() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    for (admin, path) in [(false, "/api/openapi.json"), (true, "/openapi.json")] {
        let ask = if admin { rig.open(Method::GET, path) } else { rig.api(Method::GET, path, "") };
        let answer = ask.send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.headers["content-type"], "application/json");
        let document = answer.json();
        assert_eq!(document["openapi"], "3.1.0");
        let routed = if admin { faregate::admin::paths() } else { faregate::api::paths(&ground.config) };
        let mut routes = BTreeMap::new();
        for path in routed {
            let methods = served(&rig, admin, &path).await;
            routes.insert(path, methods);
        }
        assert_eq!(documented(&document), routes);
    }
}

#[test]
fn the_api_is_documented_under_its_prefix() {
    let document = openapi::user("/money").unwrap();
    assert!(documented(&document).keys().all(|path| path.starts_with("/money/")));
}

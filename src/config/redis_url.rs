//! `ledger.url`: one Redis, one that Sentinels watch, or a Cluster.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

/// Nodes that a URL may name.
const HOSTS_MAX: usize = 64;

const FORMS: &str =
    "must be redis://HOST:PORT, redis+sentinel://HOST:PORT,…/MASTER or redis+cluster://HOST:PORT,… (rediss for TLS)";
const LIST: &str = "names several servers: write redis+cluster://HOST:PORT,… for a Cluster, \
                    redis+sentinel://HOST:PORT,…/MASTER for a Redis that Sentinels watch";
const MASTER: &str =
    "must end with the name under which the Sentinels know the Redis: redis+sentinel://HOST:PORT,…/MASTER";
const DATABASE: &str = "must not name a database: a Cluster has one only";
const QUERY: &str = "has a parameter that is not known: redis+sentinel takes sentinel_username and sentinel_password, \
                     with : / ? # @ written as %3A %2F %3F %23 %40";

const INSECURE: &str =
    "must not end with a fragment: certificates are always verified, against ledger.ca_file if that is set";

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

/// What `ledger.url` says.
#[derive(Clone)]
pub struct RedisUrl {
    pub kind: RedisKind,
    /// Whom to ask first: the server, the Sentinels, or some nodes of the Cluster.
    pub hosts: Vec<Address>,
    /// Credentials, database and TLS of the servers; its address is not to be used.
    pub server: ConnectionInfo,
}

#[derive(Clone)]
pub enum RedisKind {
    Single,
    Sentinel {
        /// The name under which the Sentinels know it.
        master: String,
        /// Credentials and TLS of the Sentinels; its address is not to be used.
        sentinel: Box<ConnectionInfo>,
    },
    Cluster,
}

impl std::fmt::Display for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Address { host, port } = self;
        if host.contains(':') { write!(out, "[{host}]:{port}") } else { write!(out, "{host}:{port}") }
    }
}

impl Address {
    /// As Redis writes them: the last colon parts host and port, also in an IPv6 address without brackets.
    pub fn parse(text: &str) -> Option<Address> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Some(Address { host: host.to_owned(), port: port.parse().ok()? })
    }
}

impl std::fmt::Debug for RedisUrl {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("RedisUrl").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

impl RedisUrl {
    /// The error says what is wrong, and quotes nothing.
    pub fn parse(url: &str) -> Result<RedisUrl, &'static str> {
        let (scheme, rest) = url.split_once("://").ok_or(FORMS)?;
        let (base, form) = match scheme.split_once('+') {
            None => (scheme, ""),
            Some((base, form @ ("sentinel" | "cluster"))) => (base, form),
            Some(_) => return Err(FORMS),
        };
        if base != "redis" && base != "rediss" {
            return Err(FORMS);
        }
        let parts = Parts::of(rest);
        if !parts.fragment.is_empty() {
            return Err(INSECURE);
        }
        match form {
            "" => single(url, &parts),
            "sentinel" => sentinel(base, &parts),
            _ => cluster(base, &parts),
        }
    }
}

/// `user:password@hosts/path?query#fragment`
struct Parts<'a> {
    /// With its `@`.
    user: &'a str,
    hosts: &'a str,
    path: &'a str,
    query: &'a str,
    /// With its `#`.
    fragment: &'a str,
}

impl<'a> Parts<'a> {
    fn of(rest: &'a str) -> Parts<'a> {
        let (rest, fragment) = rest.split_at(rest.find('#').unwrap_or(rest.len()));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        Parts { user, hosts, path, query, fragment }
    }

    fn addresses(&self, base: &str, default_port: u16) -> Result<Vec<Address>, &'static str> {
        let hosts: Vec<&str> = self.hosts.split(',').map(str::trim).collect();
        if hosts.len() > HOSTS_MAX {
            return Err("names too many servers: some of them are enough, the others are found");
        }
        let address = |host: &&str| {
            let has_port = host.rsplit(']').next().is_some_and(|after| after.contains(':'));
            let url = if has_port { format!("{base}://{host}") } else { format!("{base}://{host}:{default_port}") };
            address_of(&info(&url)?)
        };
        hosts.iter().map(address).collect()
    }

    /// How to reach servers: with these credentials and this path.
    fn server(&self, base: &str, user: &str, path: &str) -> Result<ConnectionInfo, &'static str> {
        info(&format!("{base}://{user}host:1/{path}"))
    }
}

fn single(url: &str, parts: &Parts) -> Result<RedisUrl, &'static str> {
    if parts.hosts.contains(',') {
        return Err(LIST);
    }
    let server = info(url)?;
    let hosts = vec![address_of(&server)?];
    Ok(RedisUrl { kind: RedisKind::Single, hosts, server })
}

fn sentinel(base: &str, parts: &Parts) -> Result<RedisUrl, &'static str> {
    let (master, database) = parts.path.split_once('/').unwrap_or((parts.path, ""));
    if master.is_empty() || master.contains('%') {
        return Err(MASTER);
    }
    let (mut name, mut password) = ("", "");
    for (key, value) in parts.query.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| pair.split_once('=')) {
        match key {
            "sentinel_username" => name = value,
            "sentinel_password" => password = value,
            _ => return Err(QUERY),
        }
    }
    let pairs = parts.query.split('&').filter(|pair| !pair.is_empty());
    if pairs.clone().any(|pair| !pair.contains('='))
        || [name, password].iter().any(|it| it.contains([':', '@', '/', '?']))
    {
        return Err(QUERY);
    }
    let user = if password.is_empty() { String::new() } else { format!("{name}:{password}@") };
    Ok(RedisUrl {
        hosts: parts.addresses(base, 26_379)?,
        server: parts.server(base, parts.user, database)?,
        kind: RedisKind::Sentinel { master: master.to_owned(), sentinel: Box::new(parts.server(base, &user, "")?) },
    })
}

fn cluster(base: &str, parts: &Parts) -> Result<RedisUrl, &'static str> {
    if !matches!(parts.path, "" | "0") {
        return Err(DATABASE);
    }
    if !parts.query.is_empty() {
        return Err(QUERY);
    }
    let server = parts.server(base, parts.user, "")?;
    Ok(RedisUrl { kind: RedisKind::Cluster, hosts: parts.addresses(base, 6_379)?, server })
}

fn info(url: &str) -> Result<ConnectionInfo, &'static str> {
    url.into_connection_info().map_err(|_| FORMS)
}

fn address_of(info: &ConnectionInfo) -> Result<Address, &'static str> {
    let (host, port) = match info.addr() {
        ConnectionAddr::Tcp(host, port) => (host, *port),
        ConnectionAddr::TcpTls { host, port, .. } => (host, *port),
        _ => return Err(FORMS),
    };
    if host.is_empty() { Err(FORMS) } else { Ok(Address { host: host.clone(), port }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(url: &str) -> Vec<String> {
        RedisUrl::parse(url).unwrap().hosts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_server() {
        assert_eq!(hosts("redis://cache"), ["cache:6379"]);
        assert_eq!(hosts("rediss://:p,w@cache:1/2"), ["cache:1"]);
        assert_eq!(hosts("redis://[::1]:7000/"), ["[::1]:7000"]);
    }

    #[test]
    fn sentinels() {
        let url = "redis+sentinel://app:s%40crt@s1,s2:1,[::1]/main/3?sentinel_username=watch&sentinel_password=h%3A2";
        assert_eq!(hosts(url), ["s1:26379", "s2:1", "[::1]:26379"]);
        let RedisUrl { kind: RedisKind::Sentinel { master, sentinel }, server, .. } = RedisUrl::parse(url).unwrap()
        else {
            panic!("no Sentinel");
        };
        assert_eq!(master, "main");
        let server = server.redis_settings();
        assert_eq!((server.username(), server.password(), server.db()), (Some("app"), Some("s@crt"), 3));
        let sentinel = sentinel.redis_settings();
        assert_eq!((sentinel.username(), sentinel.password(), sentinel.db()), (Some("watch"), Some("h:2"), 0));
        // Of the data's credentials the Sentinels learn nothing.
        let RedisKind::Sentinel { sentinel, .. } = RedisUrl::parse("redis+sentinel://:pw@s/m").unwrap().kind else {
            panic!("no Sentinel");
        };
        assert_eq!(sentinel.redis_settings().password(), None);
    }

    #[test]
    fn a_cluster() {
        assert_eq!(hosts("rediss+cluster://app:pw@a:1,b"), ["a:1", "b:6379"]);
        let tls = RedisUrl::parse("rediss+cluster://a:1,b").unwrap().server;
        assert!(matches!(tls.addr(), ConnectionAddr::TcpTls { .. }));
    }

    #[test]
    fn mistakes_are_told_without_their_text() {
        for (url, expected) in [
            ("memcached://hunter2", FORMS),
            ("hunter2", FORMS),
            ("redis+proxy://hunter2", FORMS),
            ("redis://", FORMS),
            ("redis+cluster://", FORMS),
            ("redis+cluster://a,,b", FORMS),
            ("redis+cluster://a:port", FORMS),
            ("redis://:hunter2@a:6379,b:6379", LIST),
            ("redis://:hunter2@a:6379,redis://b:6379", LIST),
            ("redis+sentinel://a,b", MASTER),
            ("redis+sentinel://a,b//1", MASTER),
            ("redis+sentinel://a/main?sentinel_passwort=hunter2", QUERY),
            ("redis+sentinel://a/main?sentinel_password=hunter2@x", QUERY),
            ("redis+sentinel://a/main?hunter2", QUERY),
            ("redis+cluster://a/1", DATABASE),
            ("rediss://a/#insecure", INSECURE),
            ("rediss+cluster://a#hunter2", INSECURE),
        ] {
            assert_eq!(RedisUrl::parse(url).err(), Some(expected), "{url}");
        }
        assert!(!format!("{:?}", RedisUrl::parse("redis://:hunter2@a")).contains("hunter2"));
    }

    #[test]
    fn addresses_as_redis_writes_them() {
        let parse = |text| Address::parse(text).map(|address| address.to_string());
        assert_eq!(parse("10.0.0.1:6379").as_deref(), Some("10.0.0.1:6379"));
        assert_eq!(parse("::1:6379").as_deref(), Some("[::1]:6379"));
        assert_eq!(parse(":6379").as_deref(), Some(":6379"));
        assert_eq!(parse("nowhere"), None);
    }
}

//! A Redis Cluster of one's own: three primaries with a replica each.

use std::time::Duration;

use super::{Redis, eventually_blocking, free_port};

const PRIMARIES: usize = 3;
const NODES: usize = 2 * PRIMARIES;
/// Slots of each primary but the last, which has the rest.
const SHARE: usize = 5_461;
const SLOTS: usize = 16_384;
/// How soon after a change all nodes agree again.
const SETTLED: Duration = Duration::from_secs(60);

pub struct RedisCluster {
    pub nodes: Vec<Redis>,
}

/// A line of CLUSTER NODES.
struct Seen {
    port: u16,
    flags: String,
    slots: Vec<(u16, u16)>,
}

impl RedisCluster {
    /// Waits until every slot is served and every primary has its replica.
    pub fn start() -> RedisCluster {
        let nodes: Vec<Redis> = (0..NODES).map(|_| node()).collect();
        for (index, node) in nodes.iter().enumerate().take(PRIMARIES) {
            let (first, last) =
                (index * SHARE, if index + 1 == PRIMARIES { SLOTS - 1 } else { (index + 1) * SHARE - 1 });
            node.command(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
        }
        for (index, node) in nodes.iter().enumerate() {
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
            let line = node.command(&["CLUSTER", "NODES"]);
            let bus = line.split_once('@').unwrap().1.split([' ', ',']).next().unwrap().to_owned();
            nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), &bus]);
        }
        let cluster = RedisCluster { nodes };
        eventually_blocking(SETTLED, "all nodes know each other", || {
            let know = |node: &Redis| node.command(&["CLUSTER", "INFO"]).contains(&format!("known_nodes:{NODES}"));
            cluster.nodes.iter().all(know).then_some(())
        });
        for index in 0..PRIMARIES {
            let id = cluster.nodes[index].command(&["CLUSTER", "MYID"]);
            cluster.nodes[PRIMARIES + index].command(&["CLUSTER", "REPLICATE", &id]);
        }
        cluster.wait_until_whole();
        cluster
    }

    /// For `ledger.url`: some nodes, one of them a replica.
    pub fn url(&self) -> String {
        format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", self.nodes[NODES - 1].port(), self.nodes[1].port())
    }

    /// Every slot is served, every primary has a replica that follows it, and all agree.
    pub fn wait_until_whole(&self) {
        eventually_blocking(SETTLED, "the Cluster is whole", || {
            let mut replicas = 0;
            for node in &self.nodes {
                let ok = node.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
                let seen = self.seen_by(node);
                // A primary that has not heard of its replica yet ignores its wish to take over.
                let followers = seen.iter().filter(|seen| seen.flags.contains("slave")).count();
                if !ok || followers != NODES - PRIMARIES || seen.iter().any(|seen| seen.flags.contains("fail")) {
                    return None;
                }
                let replication = node.command(&["INFO", "replication"]);
                replicas += usize::from(replication.contains("master_link_status:up"));
            }
            (replicas == NODES - PRIMARIES).then_some(())
        });
    }

    fn seen_by(&self, node: &Redis) -> Vec<Seen> {
        let seen = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let port = words.get(1)?.split('@').next()?.rsplit(':').next()?.parse().ok()?;
            let slots = words.get(8..).unwrap_or_default().iter().filter_map(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                Some((first.parse().ok()?, last.parse().ok()?))
            });
            Some(Seen { port, flags: words.get(2)?.to_string(), slots: slots.collect() })
        };
        node.command(&["CLUSTER", "NODES"]).lines().filter_map(seen).collect()
    }

    /// Which node has the slot, as those that live agree.
    pub fn owner(&self, slot: u16) -> usize {
        eventually_blocking(SETTLED, "a slot has an owner", || {
            let mut owners = self.nodes.iter().flat_map(|node| {
                let has = |seen: &Seen| {
                    let slots = seen.slots.iter().any(|(first, last)| (*first..=*last).contains(&slot));
                    slots && !seen.flags.contains("fail")
                };
                self.seen_by(node).into_iter().filter(has).map(|seen| seen.port).collect::<Vec<_>>()
            });
            let port = owners.next()?;
            owners.all(|other| other == port).then(|| self.nodes.iter().position(|node| node.port() == port))?
        })
    }

    fn id(&self, node: usize) -> String {
        self.nodes[node].command(&["CLUSTER", "MYID"])
    }

    /// Another primary than this one.
    pub fn other_primary(&self, node: usize) -> usize {
        let others = (0..NODES).find(|other| {
            *other != node && self.nodes[*other].command(&["INFO", "replication"]).contains("role:master")
        });
        others.unwrap()
    }

    /// The node that follows this one.
    pub fn replica_of(&self, node: usize) -> usize {
        let port = format!("master_port:{}\r", self.nodes[node].port());
        (0..NODES).find(|other| self.nodes[*other].command(&["INFO", "replication"]).contains(&port)).unwrap()
    }

    /// Begins to move a slot, and moves at most `keys` of its keys. Answers how many were moved.
    pub fn begin_move(&self, slot: u16, from: usize, to: usize, keys: usize) -> usize {
        let slot_text = slot.to_string();
        self.nodes[to].command(&["CLUSTER", "SETSLOT", &slot_text, "IMPORTING", &self.id(from)]);
        self.nodes[from].command(&["CLUSTER", "SETSLOT", &slot_text, "MIGRATING", &self.id(to)]);
        self.move_keys(slot, from, to, keys)
    }

    pub fn move_keys(&self, slot: u16, from: usize, to: usize, keys: usize) -> usize {
        let names = self.nodes[from].command(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), &keys.to_string()]);
        let port = self.nodes[to].port().to_string();
        let names: Vec<&str> = names.lines().filter(|name| !name.is_empty()).collect();
        for name in &names {
            let moved = self.nodes[from].command(&["MIGRATE", "127.0.0.1", &port, name, "0", "5000"]);
            assert!(["OK", "NOKEY"].contains(&moved.as_str()), "{name}: {moved}");
        }
        names.len()
    }

    /// Moves what is left, and tells everybody.
    pub fn end_move(&self, slot: u16, from: usize, to: usize) {
        while self.move_keys(slot, from, to, 100) > 0 {}
        let id = self.id(to);
        for node in [to, from] {
            let said = self.nodes[node].command(&["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &id]);
            assert_eq!(said, "OK");
        }
    }
}

fn node() -> Redis {
    Redis::with(&[
        "--appendonly",
        "no",
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &free_port().to_string(),
        "--cluster-node-timeout",
        "3000",
        "--cluster-replica-validity-factor",
        "0",
        "--repl-diskless-sync-delay",
        "0",
    ])
}

//! Careful roll-out: whom payment is enforced for, feature flags, which variant of an experiment a user sees, and the
//! settings as they are now, which may change while the process runs.

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::{Config, Enforcement, Experiment, Flag, Mode, Variant};
use crate::ledger::AccountId;

/// Users fall into so many parts; a percent is a hundred of them.
const BUCKETS: u64 = 10_000;
const PER_PERCENT: u64 = 100;

/// The settings as they are now. Cheap to clone; what is read often is kept by its reader, who is told of changes.
#[derive(Debug, Clone)]
pub struct Current {
    sender: Arc<watch::Sender<Arc<Config>>>,
}

impl Current {
    pub fn new(config: Arc<Config>) -> Current {
        Current { sender: Arc::new(watch::Sender::new(config)) }
    }

    pub fn get(&self) -> Arc<Config> {
        self.sender.borrow().clone()
    }

    /// Tells of every change from here on.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Config>> {
        self.sender.subscribe()
    }

    pub(crate) fn replace(&self, config: Arc<Config>) {
        self.sender.send_replace(config);
    }
}

/// Where a user falls for one purpose: the same in every process and version. Purposes are apart from each other, or the
/// users of one trial would be those of every other, too.
fn bucket(purpose: &str, user: &AccountId) -> u64 {
    // FNV-1a, then the finalizer of MurmurHash3, which spreads short ids over all bits.
    let bytes = purpose.bytes().chain([0]).chain(user.as_str().bytes());
    let mut hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    hash % BUCKETS
}

fn within(purpose: &str, user: &AccountId, percent: u32) -> bool {
    percent >= 100 || bucket(purpose, user) < u64::from(percent) * PER_PERCENT
}

impl Enforcement {
    /// How payment is taken of this user.
    pub fn mode_of(self, user: &AccountId) -> Mode {
        match (self.mode, within("enforcement", user, self.percent)) {
            (mode, true) | (mode @ Mode::Off, _) => mode,
            (Mode::On, false) => Mode::Shadow,
            (Mode::Shadow, false) => Mode::Off,
        }
    }
}

impl Flag {
    /// Whether the user has it.
    pub fn is_on(&self, name: &str, user: &AccountId, plan: &str) -> bool {
        let planned = self.plans.is_empty() || self.plans.iter().any(|known| known == plan);
        let named = self.users.iter().any(|known| known == user.as_str());
        self.enabled && (named || (planned && within(name, user, self.percent)))
    }
}

impl Experiment {
    /// The variant that a user who sees the experiment for the first time gets; `None` where nobody new gets any.
    pub fn draw(&self, name: &str, user: &AccountId) -> Option<&Variant> {
        if !self.active {
            return None;
        }
        let all: u64 = self.variants.iter().map(|variant| u64::from(variant.weight)).sum();
        let mut place = bucket(name, user) * all / BUCKETS;
        self.variants.iter().find(|variant| {
            let weight = u64::from(variant.weight);
            let found = place < weight;
            place = place.saturating_sub(weight);
            found
        })
    }

    pub fn variant(&self, name: &str) -> Option<&Variant> {
        self.variants.iter().find(|variant| variant.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(number: u32) -> AccountId {
        AccountId::parse(&format!("user_{number}")).unwrap()
    }

    fn share(count: usize, percent: usize) {
        assert!(count.abs_diff(percent * 100) < 150, "{count} of 10,000 for {percent} %");
    }

    #[test]
    fn a_percentage_is_that_of_users_and_only_grows() {
        let on = |percent, number| Enforcement { mode: Mode::On, percent }.mode_of(&user(number)) == Mode::On;
        for percent in [0, 1, 10, 50, 100] {
            share((0..10_000).filter(|number| on(percent, *number)).count(), percent as usize);
        }
        assert!((0..10_000).all(|number| !on(10, number) || on(20, number)), "who was enforced stays so");
    }

    #[test]
    fn users_beyond_the_percentage_get_the_weaker_mode() {
        let modes = |mode, percent| Enforcement { mode, percent }.mode_of(&user(1));
        assert_eq!(
            (modes(Mode::On, 0), modes(Mode::Shadow, 0), modes(Mode::Off, 0)),
            (Mode::Shadow, Mode::Off, Mode::Off)
        );
        assert_eq!((modes(Mode::Shadow, 100), modes(Mode::Off, 100)), (Mode::Shadow, Mode::Off));
    }

    #[test]
    fn the_place_of_a_user_never_moves() {
        // Written down: another version must not draw anew.
        let found: Vec<u64> = (0..4).map(|number| bucket("enforcement", &user(number))).collect();
        assert_eq!(found, PLACES);
        assert_ne!(bucket("a", &user(1)), bucket("b", &user(1)));
    }

    const PLACES: [u64; 4] = [4013, 5758, 6542, 8675];

    #[test]
    fn flags_are_by_percent_plan_and_name() {
        let flag = Flag { enabled: true, percent: 0, plans: vec!["pro".into()], users: vec!["user_7".into()] };
        assert!(flag.is_on("x", &user(7), "free") && !flag.is_on("x", &user(8), "pro"));
        let all = Flag { percent: 100, ..flag.clone() };
        assert!(all.is_on("x", &user(8), "pro") && !all.is_on("x", &user(8), "free"));
        assert!(!Flag { enabled: false, ..all }.is_on("x", &user(7), "pro"));
    }

    #[test]
    fn variants_are_drawn_by_their_weights() {
        let variant = |name: &str, weight| Variant { name: name.into(), weight, ..Variant::default() };
        let variants = vec![variant("a", 1), variant("never", 0), variant("b", 3)];
        let mut experiment = Experiment { variants, ..Experiment::default() };
        let count = |name: &str| {
            let drawn = (0..10_000).filter_map(|number| experiment.draw("x", &user(number)));
            drawn.filter(|variant| variant.name == name).count()
        };
        share(count("a"), 25);
        share(count("b"), 75);
        assert_eq!(count("never"), 0);
        experiment.active = false;
        assert!(experiment.draw("x", &user(1)).is_none());
    }
}

//! Time that passes when told to: everything that falls due on the way happens at its own moment, in order.

use super::error::Failure;
use super::world::{Timer, World};
use super::{checkout, collection, lifecycle, pending};

/// Most timers that one advance fires.
const STEPS_MAX: usize = 1_000_000;

/// Moves the clock to `to`, in Unix seconds.
///
/// # Errors
/// When that lies in the past, or more falls due than one advance may do.
pub(super) fn advance(world: &mut World, to: i64) -> Result<(), Failure> {
    if to < world.now {
        return Err(Failure::invalid("to", format!("The clock is at {} and does not run backwards.", world.now)));
    }
    for _ in 0..STEPS_MAX {
        let due = world.timers.first().filter(|(at, ..)| *at <= to).cloned();
        let Some(timer) = due else {
            world.now = to;
            return Ok(());
        };
        if world.is_full() {
            return Err(Failure::api());
        }
        world.timers.remove(&timer);
        // A timer set for a time already past fires now.
        world.now = world.now.max(timer.0);
        fire(world, &timer.2);
    }
    Err(Failure::invalid("to", "Too much falls due at once; advance in smaller steps."))
}

fn fire(world: &mut World, timer: &Timer) {
    match timer {
        Timer::Finalize(invoice) => lifecycle::finalize_draft(world, invoice),
        Timer::Collect(invoice) => collection::retry(world, invoice),
        Timer::Upcoming(subscription) => lifecycle::upcoming(world, subscription),
        Timer::TrialWillEnd(subscription) => lifecycle::trial_will_end(world, subscription),
        Timer::Period(subscription) => lifecycle::period_over(world, subscription),
        Timer::CancelAt(subscription) => lifecycle::cancel_at(world, subscription),
        Timer::Incomplete(subscription) => lifecycle::incomplete_expired(world, subscription),
        Timer::PendingUpdate(subscription) => pending::expired(world, subscription),
        Timer::ResumeCollection(subscription) => lifecycle::resume_collection(world, subscription),
        Timer::ExpireSession(session) => checkout::expire(world, session),
    }
}

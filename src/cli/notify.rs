//! `faregate notify test`: one signed message to the product's backend, to try the way.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::show;
use crate::config::{Config, places};
use crate::error::{Exit, Failure};
use crate::notify::webhook::{Message, Sender};

pub(super) async fn test(config: &Config) -> Result<(), Failure> {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let settings = &config.notify.webhook;
    let Some(sender) = Sender::new(settings, tasks.clone(), stop.clone()) else {
        return Err(Failure::new(Exit::Settings, "notify.webhook.url is not set: there is nobody to tell"));
    };
    let now = jiff::Timestamp::now().as_microsecond();
    let message = Message::test(u64::try_from(now).unwrap_or(0));
    let sent = sender.send(&message, u64::try_from(now).unwrap_or(0)).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    let to = places(&settings.url);
    match sent {
        Ok(()) => show::text(&format!("{} was acknowledged by {to}", message.id)),
        Err(error) => Err(Failure::new(Exit::Unavailable, format!("{} was not taken by {to}: {error}", message.id))),
    }
}

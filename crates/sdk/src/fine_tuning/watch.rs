//! Waiting for a task and following its log: by the provider's events where it pushes them, by asking again and again
//! where it does not.

use std::time::{Duration, Instant};

use alloy_primitives::Address;
use zerog_protocol::TaskId;
use zerog_protocol::fine_tuning_api::{LogLine, TaskEvent, TaskProgress, TaskView};
use zerog_protocol::task::TaskState;

use super::FineTuning;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::provider_client::join;
use crate::task_events::{PAUSE, TaskEvents};

/// Bounds of a wait.
#[derive(Debug, Clone, Copy, Default)]
pub struct WaitOptions {
    /// Longest wait; none: until the task ends.
    pub timeout: Option<Duration>,
}

/// How long a provider may be unreachable during a wait before the wait fails.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// The task itself is looked at after this time even when no event said that its state changed.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

impl FineTuning {
    /// Hands out the log as it grows, until the task ends or waits for its user.
    ///
    /// # Errors
    /// As [`FineTuning::get_log`].
    pub async fn follow_log(
        &self,
        provider: Address,
        task: TaskId,
        mut on_text: impl FnMut(&str) + Send,
    ) -> Result<TaskView> {
        let url = self.events_url(provider, task).await?;
        match TaskEvents::connect(&self.context.http, url).await? {
            Some(mut events) => {
                follow(&mut events, &mut on_text).await?;
                self.get_task(provider, Some(task)).await
            }
            None => self.poll_log(provider, task, &mut on_text).await,
        }
    }

    async fn poll_log(
        &self,
        provider: Address,
        task: TaskId,
        on_text: &mut (dyn FnMut(&str) + Send),
    ) -> Result<TaskView> {
        let mut shown = 0;
        loop {
            // The state first: what is logged before it is then surely in the text.
            let view = self.get_task(provider, Some(task)).await?;
            match self.get_log(provider, Some(task)).await {
                Ok(log) => {
                    if let Some(news) = log.get(shown..).filter(|news| !news.is_empty()) {
                        on_text(news);
                    }
                    shown = log.len();
                }
                // A task that has not begun may have no log yet.
                Err(Error::ProviderRefused {
                    status: 404 | 500, ..
                }) => {}
                Err(error) => return Err(error),
            }
            if view.state().is_some_and(rests) {
                return Ok(view);
            }
            tokio::time::sleep(self.context.poll_interval()).await;
        }
    }

    /// Waits until the adapter can be downloaded.
    ///
    /// # Errors
    /// [`Error::TaskEnded`] when the task fails or is cancelled, [`Error::Timeout`], or an unreachable provider.
    pub async fn wait_for_delivery(
        &self,
        provider: Address,
        task: TaskId,
        options: &WaitOptions,
        on_progress: impl FnMut(Progress) + Send,
    ) -> Result<TaskView> {
        self.wait_for_state(provider, task, TaskState::Delivered, options, on_progress)
            .await
    }

    /// Waits until a task is in `target` or a later state, telling every change.
    ///
    /// # Errors
    /// As [`FineTuning::wait_for_delivery`].
    pub async fn wait_for_state(
        &self,
        provider: Address,
        task: TaskId,
        target: TaskState,
        options: &WaitOptions,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<TaskView> {
        let user = self.context.user()?;
        let base = self.get_provider_url(provider).await?;
        let started = Instant::now();
        let mut told = Told {
            last: None,
            on_progress: &mut on_progress,
        };
        let mut push = Push::Untried;
        let mut known: Option<TaskProgress> = None;
        let mut unreachable_since: Option<Instant> = None;
        loop {
            match self.task_at(&base, user, task).await {
                Ok(view) => {
                    unreachable_since = None;
                    let progress = progress_of_view(&view);
                    told.tell(progress_of_event(&progress));
                    known = Some(progress);
                    match view.state() {
                        Some(TaskState::Failed | TaskState::Cancelled) => {
                            return Err(ended(task, view));
                        }
                        Some(state) if rank(state) >= rank(target) => return Ok(view),
                        _ => {}
                    }
                }
                // Providers restart; a task survives that.
                Err(error) if error.is_passing() => {
                    let since = *unreachable_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > PATIENCE {
                        return Err(error);
                    }
                    push.disconnect();
                }
                Err(error) => return Err(error),
            }
            let left = options
                .timeout
                .map(|timeout| timeout.saturating_sub(started.elapsed()));
            if let Some(timeout) = options.timeout.filter(|_| left == Some(Duration::ZERO)) {
                let what = format!(
                    "task {task} to reach {target}; it goes on without you, see `fine-tuning get-task`"
                );
                return Err(Error::Timeout {
                    what,
                    waited: timeout,
                    last: known.map(|known| known.progress),
                });
            }
            if matches!(push, Push::Untried) && unreachable_since.is_none() {
                push = self.try_push(provider, task).await;
            }
            match &mut push {
                Push::Events(events) => {
                    let longest = left.map_or(LONGEST_SILENCE, |left| left.min(LONGEST_SILENCE));
                    // Whatever comes of it, the task is looked at next.
                    let news = news(events, known.as_ref(), &mut told);
                    if let Ok(Err(error)) = tokio::time::timeout(longest, news).await {
                        tracing::debug!(%error, "the event stream broke; it is continued");
                        tokio::time::sleep(PAUSE.min(self.context.poll_interval())).await;
                    }
                }
                Push::Untried | Push::Unsupported => {
                    let pause = self.context.poll_interval();
                    tokio::time::sleep(left.map_or(pause, |left| left.min(pause))).await;
                }
            }
        }
    }

    async fn try_push(&self, provider: Address, task: TaskId) -> Push {
        let Ok(url) = self.events_url(provider, task).await else {
            return Push::Untried;
        };
        match TaskEvents::connect(&self.context.http, url).await {
            Ok(Some(events)) => Push::Events(Box::new(events)),
            Ok(None) => Push::Unsupported,
            Err(_) => Push::Untried,
        }
    }

    async fn events_url(&self, provider: Address, task: TaskId) -> Result<String> {
        let user = self.context.user()?;
        let base = self.get_provider_url(provider).await?;
        Ok(join(&base, &format!("/v1/user/{user}/task/{task}/events")))
    }
}

/// Whether the provider pushes.
enum Push {
    Untried,
    Events(Box<TaskEvents>),
    Unsupported,
}

impl Push {
    fn disconnect(&mut self) {
        if let Self::Events(events) = self {
            events.disconnect();
        }
    }
}

/// Tells each piece of news once.
struct Told<'a> {
    last: Option<Progress>,
    on_progress: &'a mut (dyn FnMut(Progress) + Send),
}

impl Told<'_> {
    fn tell(&mut self, news: Progress) {
        if self.last.as_ref() != Some(&news) {
            (self.on_progress)(news.clone());
            self.last = Some(news);
        }
    }
}

/// Tells progress until the task is in another state than `known`, or the stream ends. `known` is what the provider
/// answered last when it was asked; events that were on their way before that answer are passed over.
async fn news(
    events: &mut TaskEvents,
    known: Option<&TaskProgress>,
    told: &mut Told<'_>,
) -> Result<()> {
    while let Some(event) = events.next().await? {
        // Every change of state comes with progress.
        if let TaskEvent::Progress(progress) = event {
            if known.is_some_and(|known| is_older(&progress, known)) {
                continue;
            }
            told.tell(progress_of_event(&progress));
            if known.is_none_or(|known| progress.progress != known.progress) {
                break;
            }
        }
    }
    Ok(())
}

/// Whether an event is from before what is known: of an earlier state, or of an earlier step of the same one. A run that
/// goes on from a checkpoint repeats steps; these are heard of once the task was asked for again. Nothing is older than
/// a state that this protocol does not have.
fn is_older(event: &TaskProgress, known: &TaskProgress) -> bool {
    let state = |progress: &TaskProgress| progress.progress.parse().ok().map(rank);
    let step = |progress: &TaskProgress| progress.training.as_ref().map(|training| training.step);
    match (state(event), state(known)) {
        (Some(event_rank), Some(known_rank)) if event_rank == known_rank => {
            step(event) < step(known)
        }
        (Some(event_rank), Some(known_rank)) => event_rank < known_rank,
        _ => false,
    }
}

/// Hands out log lines until the task ends or waits for its user. A broken stream is continued after its last line.
async fn follow(events: &mut TaskEvents, on_text: &mut (dyn FnMut(&str) + Send)) -> Result<()> {
    let mut broken_since: Option<Instant> = None;
    loop {
        match events.next().await {
            Ok(Some(event)) => {
                broken_since = None;
                match event {
                    TaskEvent::Log(line) => on_text(&rendered(&line)),
                    // It comes after all lines that were written before it.
                    TaskEvent::Progress(progress) if progress.progress.parse().is_ok_and(rests) => {
                        return Ok(());
                    }
                    _ => {}
                }
            }
            // The provider may restart, or end a stream that became old.
            outcome => {
                let since = *broken_since.get_or_insert_with(Instant::now);
                if let Err(error) = outcome
                    && (since.elapsed() > PATIENCE || !error.is_passing())
                {
                    return Err(error);
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// A line as it stands in the text log.
fn rendered(line: &LogLine) -> String {
    let time = i64::try_from(line.at_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(String::new, |time| {
            time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
        });
    format!("[{time}] {}\n", line.text)
}

/// Whether nothing more is logged before the user acts.
fn rests(state: TaskState) -> bool {
    state.is_terminal() || state.is_downloadable()
}

/// Place in the order of a task's life.
fn rank(state: TaskState) -> usize {
    TaskState::ALL
        .iter()
        .position(|other| *other == state)
        .unwrap_or(0)
}

fn ended(task: TaskId, view: TaskView) -> Error {
    let reason = view
        .failure_reason
        .unwrap_or_else(|| "the provider gave no reason".to_owned());
    Error::TaskEnded {
        task,
        state: view.progress,
        reason,
    }
}

fn progress_of_view(view: &TaskView) -> TaskProgress {
    TaskProgress {
        progress: view.progress.clone(),
        stage: view.stage.clone(),
        queue_position: view.queue_position,
        training: view.training.clone(),
    }
}

fn progress_of_event(progress: &TaskProgress) -> Progress {
    let training = progress.training.as_ref();
    Progress::Task {
        state: progress.progress.clone(),
        step: training.map(|training| training.step),
        total_steps: training.map(|training| training.total_steps),
        loss: training.and_then(|training| training.loss),
        eval_loss: training.and_then(|training| training.eval_loss),
        learning_rate: training.and_then(|training| training.learning_rate),
        tokens_per_s: training.and_then(|training| training.tokens_per_s),
        eta_s: training.and_then(|training| training.eta_s),
        queue_position: progress.queue_position,
        stage: progress.stage.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_look_as_in_the_text_log() {
        let line = LogLine {
            text: "creating task....".into(),
            at_ms: 1_741_656_007_644,
        };
        assert_eq!(
            rendered(&line),
            "[2025-03-11T01:20:07.644Z] creating task....\n"
        );
    }
}

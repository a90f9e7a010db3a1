//! A task's news as server-sent events: states and log lines as they are written, and progress as it changes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Path, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use tokio::sync::broadcast;
use zerog_protocol::fine_tuning_api::{LogLine, StateTime, TaskEvent, TaskProgress};

use super::error::ApiError;
use super::limits::client_address;
use super::tasks;
use crate::app::App;
use crate::store::{EventRow, TaskRow};

/// Rows read at a time.
const PAGE: u64 = 500;
/// Comment lines keep connections open in between.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Longest pause between two looks: other instances of the daemon may have written.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// A stream ends after this time; clients come back with `Last-Event-ID`.
const LONGEST_STREAM: Duration = Duration::from_secs(3600);
/// How long clients should wait before they come back.
const RECONNECT: Duration = Duration::from_millis(500);

/// `GET /v1/user/{addr}/task/{id}/events`: everything after `Last-Event-ID`, then news until the task has ended.
pub(crate) async fn events(
    State(app): State<Arc<App>>,
    Path((address, id)): Path<(String, String)>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let row = tasks::find(&app, &address, &id).await?;
    let after = match headers.get("last-event-id") {
        Some(value) => value
            .to_str()
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| {
                ApiError::bad_request(
                    "invalid_last_event_id",
                    "Last-Event-ID must be the id of an earlier event",
                )
            })?,
        None => 0,
    };
    let trusted = &app.config.server.trusted_proxies;
    let slot = app.limiter.watch(client_address(peer, &headers, trusted))?;
    // Listened to before the first look, so that nothing falls in between.
    let changed = app.changed.subscribe();
    let news = News {
        app,
        id: row.id(),
        after,
        told: None,
        changed,
        began: Instant::now(),
    };
    let stream = async_stream::stream! {
        let _slot = slot;
        let mut news = news;
        yield Ok(Event::default().retry(RECONNECT));
        loop {
            match news.look().await {
                Ok((events, is_over)) => {
                    for event in events {
                        yield Ok::<_, std::convert::Infallible>(event);
                    }
                    if is_over {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(task.id = news.id, %error, "a task's news could not be read; the client comes back");
                    return;
                }
            }
            if !news.wait().await {
                return;
            }
        }
    };
    Ok(Sse::new(stream)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response())
}

/// What one client has been told.
struct News {
    app: Arc<App>,
    id: String,
    after: u64,
    told: Option<TaskProgress>,
    changed: broadcast::Receiver<String>,
    began: Instant,
}

impl News {
    /// What is new, and whether nothing more will come.
    async fn look(&mut self) -> Result<(Vec<Event>, bool), crate::store::StoreError> {
        // The task first: what was written before it ended is then surely among the rows.
        let row = self.app.store.task(&self.id).await?;
        let mut events = Vec::new();
        loop {
            let page = self.app.store.events(&self.id, self.after, PAGE).await?;
            let Some(last) = page.last() else { break };
            self.after = last.sequence;
            events.extend(page.iter().map(numbered));
        }
        let Some(row) = row else {
            return Ok((events, true));
        };
        let progress = progress(&self.app, &row).await?;
        if self.told.as_ref() != Some(&progress) {
            events.push(unnumbered(&TaskEvent::Progress(progress.clone())));
            self.told = Some(progress);
        }
        Ok((events, row.task.state.is_terminal()))
    }

    /// Waits for a reason to look again; false when the stream should end.
    async fn wait(&mut self) -> bool {
        let look_again = tokio::time::sleep(LOOK_AGAIN);
        tokio::pin!(look_again);
        loop {
            if self.began.elapsed() > LONGEST_STREAM {
                return false;
            }
            tokio::select! {
                () = self.app.shutdown.cancelled() => return false,
                () = &mut look_again => return true,
                changed = self.changed.recv() => match changed {
                    Ok(id) if id != self.id => {}
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return true,
                    Err(broadcast::error::RecvError::Closed) => return false,
                },
            }
        }
    }
}

async fn progress(app: &App, row: &TaskRow) -> Result<TaskProgress, crate::store::StoreError> {
    Ok(TaskProgress {
        progress: row.task.state.as_str().to_owned(),
        stage: tasks::stage(&row.task),
        queue_position: tasks::queue_position(app, row).await?,
        training: tasks::training(row),
    })
}

fn numbered(row: &EventRow) -> Event {
    let event = if row.kind == "state" {
        TaskEvent::State(StateTime {
            state: row.content.clone(),
            at_ms: row.at_ms,
        })
    } else {
        TaskEvent::Log(LogLine {
            text: row.content.clone(),
            at_ms: row.at_ms,
        })
    };
    unnumbered(&event).id(row.sequence.to_string())
}

fn unnumbered(event: &TaskEvent) -> Event {
    Event::default().event(event.name()).data(event.data())
}

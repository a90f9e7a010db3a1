//! Latencies under load, as `benches/serving_load.py` runs them.
//!
//! ```console
//! $ load_bench adapters DIR 1000 100 64 2000   # names, places in memory, requests at once, requests
//! $ load_bench http DIR 1000 10                # requests a second, seconds
//! ```
//!
//! `DIR` comes from `serving_bench make DIR small 16`, for HTTP from `serving_bench make DIR tiny 0`. Adapters: as many names as asked for, over the sixteen folders, so
//! that files stay in the page cache; a name that is not in memory is loaded from its folder first, as a provider does.
//! Resident and ten times too many alternate in one process. HTTP: one generated token over loopback and the same request
//! handed to the engine directly, in turns, at a fixed rate; the difference is the interface.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zerog_inference::engine::{self, EngineConfig, EngineHandle};
use zerog_inference::{GenerateRequest, PackageSource, SamplingParams, Served, Trust};
use zerog_model::BaseModel;
use zerog_tokenization::Tokenizer;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Connections that clients keep open.
const CONNECTIONS: usize = 16;
/// Parts of a run, alternating between the two sides of a comparison.
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let answer = match arguments[..] {
        ["adapters", folder, names, places, at_once, requests] => {
            let sizes = [
                names.parse()?,
                places.parse()?,
                at_once.parse()?,
                requests.parse()?,
            ];
            adapters(Path::new(folder), sizes).await?
        }
        ["http", folder, rate, seconds] => {
            http(Path::new(folder), rate.parse()?, seconds.parse()?).await?
        }
        _ => {
            return Err(
                "usage: load_bench adapters DIR NAMES PLACES AT_ONCE REQUESTS | http DIR RATE SECONDS"
                    .into(),
            );
        }
    };
    Ok(writeln!(std::io::stdout(), "{answer}")?)
}

fn start(folder: &Path, sizes: EngineConfig) -> Result<EngineHandle, Failure> {
    let model = BaseModel::load(folder)?;
    let tokenizer = Arc::new(Tokenizer::from_dir(folder)?);
    Ok(engine::start(model, tokenizer, sizes)?)
}

fn request(number: usize, adapter: Option<String>, answer: usize) -> GenerateRequest {
    let prompt = (0..16).map(|place| 3 + ((place * 7919 + number * 104_729) % 2000) as u32);
    GenerateRequest {
        adapter,
        sampling: SamplingParams {
            // Random weights must not end an answer.
            logit_bias: vec![(0, -1e9), (2, -1e9)],
            ..SamplingParams::default()
        },
        ..GenerateRequest::greedy(prompt.collect(), answer)
    }
}

/// p99 of requests to more names than fit in memory, and to as many as fit.
async fn adapters(folder: &Path, sizes: [usize; 4]) -> Result<Value, Failure> {
    let [names, places, at_once, requests] = sizes;
    let config = EngineConfig {
        max_running: at_once,
        max_waiting: 4 * at_once,
        max_cached_tokens: at_once * 64,
        max_context_tokens: 64,
        max_adapters: places,
        reuse_prefixes: false,
        ..EngineConfig::default()
    };
    let engine = start(folder, config)?;
    let (mut resident, mut crowded, mut loads) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        // The first pass over the names that fit is not measured: it loads them.
        let fits = places.min(names) * 9 / 10;
        storm(&engine, folder, (fits, at_once, 2 * fits)).await?;
        let (mut latencies, misses) = storm(&engine, folder, (fits, at_once, requests)).await?;
        if misses > 0 {
            return Err(format!("{misses} of the resident adapters were not in memory").into());
        }
        resident.append(&mut latencies);
        let (mut latencies, misses) = storm(&engine, folder, (names, at_once, requests)).await?;
        crowded.append(&mut latencies);
        loads += misses;
    }
    let (resident, crowded) = (percentiles(resident), percentiles(crowded));
    Ok(json!({
        "names": names, "places": places, "at_once": at_once, "requests": ROUNDS * requests, "loads": loads,
        "resident_ms": resident, "crowded_ms": crowded,
        "p99_ratio": crowded["p99"].as_f64().unwrap_or(0.0) / resident["p99"].as_f64().unwrap_or(1.0),
    }))
}

/// Requests to names in a scattered order, some at once; their latencies in milliseconds, and how many had to load.
async fn storm(
    engine: &EngineHandle,
    folder: &Path,
    (names, at_once, requests): (usize, usize, usize),
) -> Result<(Vec<f64>, usize), Failure> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = Vec::new();
    for _ in 0..at_once {
        let (engine, next, folder) = (engine.clone(), Arc::clone(&next), folder.to_path_buf());
        workers.push(tokio::spawn(async move {
            let (mut latencies, mut misses) = (Vec::new(), 0);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= requests {
                    return Ok::<_, Failure>((latencies, misses));
                }
                // 7919 is prime to every number of names used here: all names, far apart.
                let name = number * 7919 % names;
                let start = Instant::now();
                misses += usize::from(answer_one(&engine, &folder, name).await?);
                latencies.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }));
    }
    let (mut latencies, mut misses) = (Vec::new(), 0);
    for worker in workers {
        let (mut own, missed) = worker.await??;
        latencies.append(&mut own);
        misses += missed;
    }
    Ok((latencies, misses))
}

/// Four tokens from an adapter; returns whether it had to be loaded.
async fn answer_one(engine: &EngineHandle, folder: &Path, name: usize) -> Result<bool, Failure> {
    let id = format!("adapter-{name}");
    let mut has_missed = false;
    loop {
        if let Some(_pin) = engine.pin_adapter(&id) {
            engine
                .generate(request(name, Some(id.clone()), 4))?
                .collect()
                .await?;
            return Ok(has_missed);
        }
        has_missed = true;
        let files: PathBuf = folder.join(format!("adapter-{}", name % 16));
        engine
            .load_package(&id, PackageSource::Folder(files), Trust::PassedBefore)
            .await?;
    }
}

/// Latencies of one token over HTTP and from the engine directly.
async fn http(folder: &Path, rate: usize, seconds: usize) -> Result<Value, Failure> {
    let config = EngineConfig {
        max_running: 32,
        max_waiting: 1024,
        reuse_prefixes: false,
        ..EngineConfig::default()
    };
    let engine = start(folder, config)?;
    let served = Served {
        engine: engine.clone(),
        base_names: ["base".to_owned()].into(),
        created_s: 0,
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server =
        tokio::spawn(async move { axum::serve(listener, zerog_inference::router(served)).await });
    let (mut over_http, mut direct, mut lists) = (Vec::new(), Vec::new(), Vec::new());
    let requests = (rate * seconds).div_ceil(ROUNDS);
    let completion = |number: usize| {
        let prompt = request(number, None, 1).prompt;
        let body =
            json!({"model": "base", "prompt": prompt[..4], "max_tokens": 1, "temperature": 0})
                .to_string();
        format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let list = |_: usize| "GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n".to_owned();
    for _ in 0..ROUNDS {
        lists.append(&mut paced_http(address, (rate, requests), list).await?);
        over_http.append(&mut paced_http(address, (rate, requests), completion).await?);
        direct.append(&mut paced_engine(&engine, (rate, requests)).await?);
    }
    server.abort();
    let (over_http, direct, lists) = (
        percentiles(over_http),
        percentiles(direct),
        percentiles(lists),
    );
    let of = |side: &Value, name: &str| side[name].as_f64().unwrap_or(0.0);
    Ok(json!({
        "rate": rate, "requests": ROUNDS * requests, "completion_ms": over_http, "engine_ms": direct, "models_ms": lists,
        "overhead_p50_ms": of(&over_http, "p50") - of(&direct, "p50"),
        "overhead_p99_ms": of(&over_http, "p99") - of(&direct, "p99"),
    }))
}

/// Sends requests at a fixed rate, each at its own time whatever became of those before; latencies from the time at which
/// it should have been sent.
async fn paced_http<F>(
    address: std::net::SocketAddr,
    (rate, requests): (usize, usize),
    text: F,
) -> Result<Vec<f64>, Failure>
where
    F: Fn(usize) -> String,
{
    let begin = tokio::time::Instant::now() + Duration::from_millis(20);
    let mut clients = Vec::new();
    for client in 0..CONNECTIONS {
        let texts: Vec<(usize, String)> = (client..requests)
            .step_by(CONNECTIONS)
            .map(|number| (number, text(number)))
            .collect();
        clients.push(tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let mut latencies = Vec::with_capacity(texts.len());
            for (number, text) in texts {
                let due = begin + Duration::from_secs_f64(number as f64 / rate as f64);
                tokio::time::sleep_until(due).await;
                stream.write_all(text.as_bytes()).await?;
                read_answer(&mut stream).await?;
                latencies.push(due.elapsed().as_secs_f64() * 1e3);
            }
            Ok::<_, Failure>(latencies)
        }));
    }
    let mut all = Vec::new();
    for client in clients {
        all.append(&mut client.await??);
    }
    Ok(all)
}

/// The same for the engine without the interface.
async fn paced_engine(
    engine: &EngineHandle,
    (rate, requests): (usize, usize),
) -> Result<Vec<f64>, Failure> {
    let begin = tokio::time::Instant::now() + Duration::from_millis(20);
    let mut clients = Vec::new();
    for client in 0..CONNECTIONS {
        let engine = engine.clone();
        clients.push(tokio::spawn(async move {
            let mut latencies = Vec::new();
            for number in (client..requests).step_by(CONNECTIONS) {
                let due = begin + Duration::from_secs_f64(number as f64 / rate as f64);
                tokio::time::sleep_until(due).await;
                let mut wanted = request(number, None, 1);
                wanted.prompt.truncate(4);
                engine.generate(wanted)?.collect().await?;
                latencies.push(due.elapsed().as_secs_f64() * 1e3);
            }
            Ok::<_, Failure>(latencies)
        }));
    }
    let mut all = Vec::new();
    for client in clients {
        all.append(&mut client.await??);
    }
    Ok(all)
}

/// Reads one answer with a known length.
async fn read_answer(stream: &mut TcpStream) -> Result<(), Failure> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        let mut part = [0; 4096];
        let count = stream.read(&mut part).await?;
        if count == 0 {
            return Err("the server closed the connection".into());
        }
        bytes.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        if !head.starts_with("HTTP/1.1 200") {
            return Err(format!("refused: {text}").into());
        }
        let length = head.lines().find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")?
                .parse::<usize>()
                .ok()
        });
        if length.is_some_and(|length| body.len() >= length) {
            return Ok(());
        }
    }
}

fn percentiles(mut values: Vec<f64>) -> Value {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = ((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1));
        values.get(place).copied().unwrap_or(0.0)
    };
    json!({"p50": at(0.5), "p99": at(0.99), "most": at(1.0)})
}

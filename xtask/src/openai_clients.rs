//! The official `openai` packages against the local server: pinned, each an ordinary script that takes the URL.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

use crate::check::{command, has};

const PYTHON: &str = "openai==3.54.0";
const NODE: &str = "openai@7.57.0";
/// A chat template of the Qwen family in short, so that tools can be tried on the small model.
const TEMPLATE: &str = "{%- if tools %}{{- '<|im_start|>system\\n<tools>' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '</tools> Answer with <tool_call> JSON </tool_call>.<|im_end|>\\n' }}{%- endif %}{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

/// A package that is tried.
#[derive(Clone, Copy)]
pub(crate) enum Client {
    Python,
    Node,
}

/// Both.
pub(crate) const ALL: [Client; 2] = [Client::Python, Client::Node];

/// A probe that is ready to run.
pub(crate) struct Installed {
    program: PathBuf,
    script: PathBuf,
}

impl Client {
    /// The name of this part of the checks.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Python => "openai for Python against the local server",
            Self::Node => "openai for Node against the local server",
        }
    }

    /// Installs the pinned package below `target/clients`, unless it is there.
    pub(crate) fn install(self, root: &Path) -> anyhow::Result<Installed> {
        let folder = root.join("target/clients/openai");
        fs::create_dir_all(&folder)?;
        let scripts = root.join("crates/inference/tests/clients");
        match self {
            Self::Python => {
                if !has("python3") {
                    bail!("python3 was not found");
                }
                let environment = folder.join("venv");
                let python = environment.join("bin/python");
                let marker = environment.join(PYTHON);
                if !marker.exists() {
                    let path = environment.to_string_lossy();
                    command(root, "python3", &["-m", "venv", &path], &[])?;
                    let quiet = [
                        "-m",
                        "pip",
                        "install",
                        "--quiet",
                        "--disable-pip-version-check",
                    ];
                    let arguments = [&quiet[..], &[PYTHON]].concat();
                    command(root, &python.to_string_lossy(), &arguments, &[])?;
                    fs::write(marker, "")?;
                }
                Ok(Installed {
                    program: python,
                    script: scripts.join("openai_probe.py"),
                })
            }
            Self::Node => {
                if !has("node") || !has("npm") {
                    bail!("Node and npm were not found");
                }
                if !folder.join("node_modules/openai").exists() {
                    let prefix = folder.to_string_lossy();
                    let quiet = [
                        "--no-save",
                        "--ignore-scripts",
                        "--no-audit",
                        "--no-fund",
                        "--silent",
                    ];
                    let arguments =
                        [&["install", "--prefix", &prefix], &quiet[..], &[NODE]].concat();
                    command(root, "npm", &arguments, &[])?;
                }
                // Node looks for packages beside the script.
                let script = folder.join("openai_probe.mjs");
                fs::copy(scripts.join("openai_probe.mjs"), &script)?;
                Ok(Installed {
                    program: "node".into(),
                    script,
                })
            }
        }
    }
}

impl Installed {
    /// Runs the probe against a fresh server and ends that server, whatever happens.
    pub(crate) fn run(&self, root: &Path) -> anyhow::Result<()> {
        let (mut server, url) = start_server(root)?;
        let program = self.program.to_string_lossy();
        let result = command(root, &program, &[&self.script.to_string_lossy(), &url], &[]);
        server.kill().context("cannot stop the server")?;
        server.wait()?;
        result
    }
}

fn start_server(root: &Path) -> anyhow::Result<(Child, String)> {
    let folder = root.join("target/clients/openai/model");
    fs::create_dir_all(&folder)?;
    for entry in fs::read_dir(root.join("fixtures/tiny-qwen"))? {
        let entry = entry?;
        fs::copy(entry.path(), folder.join(entry.file_name()))?;
    }
    fs::write(folder.join("chat_template.jinja"), TEMPLATE)?;
    let adapter = root.join("target/clients/openai/adapter");
    write_adapter(&adapter)?;
    let mut server = Command::new(root.join("target/debug/0g-compute-provider"))
        .args([
            "serve-local",
            "--port",
            "0",
            "--name",
            "tiny-qwen",
            "--model",
        ])
        .arg(&folder)
        .arg(format!("--adapter=ft-probe={}", adapter.display()))
        .args([
            "--max-running",
            "4",
            "--max-waiting",
            "8",
            "--max-context",
            "1024",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the server")?;
    let stdout = server.stdout.take().context("the server has no output")?;
    let mut url = String::new();
    BufReader::new(stdout).read_line(&mut url)?;
    if !url.starts_with("http") {
        server.kill()?;
        server.wait()?;
        bail!("the server did not print its address");
    }
    Ok((server, url.trim().to_owned()))
}

/// An adapter of rank 2 on the queries of the small model: numbers without meaning, with a visible effect.
fn write_adapter(folder: &Path) -> anyhow::Result<()> {
    const HIDDEN: usize = 192;
    fs::create_dir_all(folder)?;
    let settings = serde_json::json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny-qwen", "r": 2,
        "lora_alpha": 4, "lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj"],
    });
    fs::write(folder.join("adapter_config.json"), settings.to_string())?;
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut state = 1u32;
    for layer in 0..6 {
        for (part, shape) in [("lora_A", [2, HIDDEN]), ("lora_B", [HIDDEN, 2])] {
            let start = data.len();
            for _ in 0..shape[0] * shape[1] {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let value = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
                data.extend_from_slice(&value.to_le_bytes());
            }
            let name =
                format!("base_model.model.model.layers.{layer}.self_attn.q_proj.{part}.weight");
            let place = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
            header.insert(name, place);
        }
    }
    let header = serde_json::Value::from(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&data);
    Ok(fs::write(folder.join("adapter_model.safetensors"), bytes)?)
}

//! `0g-compute-provider` as a process of its own, beside a network that runs without one.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use zerog_sdk::Address;

use crate::support::{Cli, Network, Process, binary, fixture, wait_for};

/// Both roles with their defaults.
pub(crate) const BOTH_ROLES: &str =
    "[fine_tuning]\n\n[inference]\nmodel = \"Qwen2.5-0.5B-Instruct\"\n";

/// A provider process with a data directory of its own.
pub(crate) struct ProviderProcess {
    pub(crate) address: Address,
    config: PathBuf,
    log: PathBuf,
    process: Process,
}

impl ProviderProcess {
    /// Starts a provider with the wallet of a development account, and waits until it answers. `roles` are the sections of
    /// its configuration that say what it does.
    pub(crate) fn start(network: &Network, name: &str, account: usize, roles: &str) -> Self {
        let folder = network.folder.path();
        let port = free_port();
        let config = Self::configure(network, name, account, roles, port);
        let log = folder.join(format!("{name}.log"));
        let process = Self::spawn(&config, &log);
        let provider = Self {
            address: network.info.accounts[account].address,
            config,
            log,
            process,
        };
        wait_for("the provider to answer", Duration::from_secs(60), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        provider
    }

    /// Runs a provider on a port until it ends, which it does when it cannot start.
    pub(crate) fn try_start(
        network: &Network,
        name: &str,
        account: usize,
        roles: &str,
        port: u16,
    ) -> Output {
        let config = Self::configure(network, name, account, roles, port);
        Command::new(binary("ZEROG_PROVIDER_BINARY", "0g-compute-provider"))
            .args(["serve", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .output()
            .expect("the binary starts")
    }

    fn configure(network: &Network, name: &str, account: usize, roles: &str, port: u16) -> PathBuf {
        let folder = network.folder.path();
        let info = &network.info;
        let key_file = folder.join(format!("{name}.key"));
        fs::write(&key_file, &info.accounts[account].private_key).unwrap();
        let model = fixture("tiny-qwen");
        let config = folder.join(format!("{name}.toml"));
        let data_dir = folder.join(name);
        let text = format!(
            r#"data_dir = "{data}"

[chain]
network = "devnet"
rpc_url = "{rpc}"
wallet_key_file = "{key}"
storage_indexer_url = "{indexer}"
poll_interval_ms = 200

[identity]
tee = "simulated"

[server]
listen = "127.0.0.1:{port}"

[[models]]
name = "mock-model"
folder = "{model}"

[[models]]
name = "Qwen2.5-0.5B-Instruct"
folder = "{model}"
stand_in = true

{roles}"#,
            data = data_dir.display(),
            rpc = info.rpc_url,
            key = key_file.display(),
            indexer = info.indexer_url,
        );
        fs::write(&config, text).unwrap();
        config
    }

    fn spawn(config: &PathBuf, log: &PathBuf) -> Process {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        Process::spawn(
            Command::new(binary("ZEROG_PROVIDER_BINARY", "0g-compute-provider"))
                .args(["serve", "--config"])
                .arg(config)
                .stdout(Stdio::null())
                .stderr(log),
        )
    }

    /// SIGKILL, and a new life on the same data.
    pub(crate) fn kill_and_restart(&mut self) {
        self.process.kill();
        self.process = Self::spawn(&self.config, &self.log);
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// What it logged in all its lives.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the network's owner has acknowledged the services of both kinds that this provider should have.
    pub(crate) fn wait_acknowledged(&self, cli: &Cli, services: &[&str]) {
        for service in services {
            wait_for(
                &format!("the {service} service to be acknowledged"),
                Duration::from_secs(60),
                || {
                    let listed = cli.json(&[service, "list-providers"]);
                    let address = self.address.to_string();
                    let found = listed.as_array()?.iter();
                    found
                        .into_iter()
                        .any(|service| service["provider"] == address.as_str())
                        .then_some(())
                },
            );
        }
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

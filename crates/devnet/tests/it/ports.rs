//! A taken port is said clearly.

use std::net::TcpListener;
use std::process::Command;

use crate::provider_process::{BOTH_ROLES, ProviderProcess};
use crate::support::{Network, devnet_binary};

#[test]
fn a_taken_port_names_the_port_and_the_option() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for flag in ["--rpc-port", "--storage-port", "--provider-port"] {
        let mut command = Command::new(devnet_binary());
        command.arg("up");
        for other in ["--rpc-port", "--storage-port", "--provider-port"] {
            command.args([other, if other == flag { &port } else { "0" }]);
        }
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(13));
        assert!(
            stderr.contains(&format!("port {port}")) && stderr.contains(flag),
            "{stderr}"
        );
    }
}

#[test]
fn a_provider_whose_port_is_taken_says_so() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let network = Network::start(&["--no-provider"]);
    let output = ProviderProcess::try_start(&network, "provider", 2, BOTH_ROLES, port);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(13), "{stderr}");
    assert!(
        stderr.contains(&format!("127.0.0.1:{port}")) && stderr.contains("server.listen"),
        "{stderr}"
    );
}

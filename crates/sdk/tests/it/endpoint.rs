//! A provider behind TLS: the certificate of the connection that was used is compared with what the enclave names.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zerog_attestation::{PeerCertificate, TeeBackend as _};
use zerog_sdk::{CheckId, CheckStatus, Level, UploadOptions};

use crate::support::{Response, World};

/// Names the folder of the certificates to the process that uses them.
const FOLDER_VARIABLE: &str = "ENDPOINT_TEST_FOLDER";

/// A process reads its certificate store once, so the test goes on in a process with a store of its own.
#[tokio::test]
async fn the_connections_certificate_decides() {
    match std::env::var_os(FOLDER_VARIABLE) {
        Some(folder) => behind_tls(Path::new(&folder)).await,
        None => start_again(),
    }
}

fn start_again() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        std::fs::write(folder.path().join(name), content).unwrap();
    };
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = authority.self_signed(&authority_key).unwrap();
    write("authority.pem", root.pem().as_bytes());
    let issuer = Issuer::new(authority, &authority_key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    write("leaf.der", leaf.signed_by(&key, &issuer).unwrap().der());
    write("key.der", key.serialized_der());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "endpoint::the_connections_certificate_decides"])
        .env("SSL_CERT_FILE", folder.path().join("authority.pem"))
        .env(FOLDER_VARIABLE, folder.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn behind_tls(folder: &Path) {
    let world = World::start().await;
    let leaf = std::fs::read(folder.join("leaf.der")).unwrap();
    let own = PeerCertificate::parse(&leaf).unwrap().key_sha256;
    let key = std::fs::read(folder.join("key.der")).unwrap();
    world.move_to(&end_tls(&world, leaf, key).await).await;

    let named = Arc::new(Mutex::new(None));
    let (tee, keys, shown) = (
        Arc::clone(&world.tee),
        world.keys.clone(),
        Arc::clone(&named),
    );
    world.answer(move |request| {
        let nonce = request.path.strip_prefix("/v1/quote?nonce=")?;
        let nonce = hex::decode(nonce).unwrap().try_into().unwrap();
        let key: Option<[u8; 32]> = *shown.lock().unwrap();
        let data = keys.challenge_report_data(&nonce, key.as_ref());
        let mut bundle = tee.quote(&data).unwrap();
        bundle.tls_key_sha256 = key;
        Some(Response::new(200, bundle.to_json()))
    });
    let inference = async || {
        let inference = &world.broker.inference;
        let report = inference
            .verify_service(world.provider, None, |_| ())
            .await
            .unwrap();
        let endpoint = report.checks.iter().find(|c| c.id == CheckId::Endpoint);
        (report.level, endpoint.unwrap().status)
    };
    assert_eq!(inference().await, (Level::Simulated, CheckStatus::Warning));
    *named.lock().unwrap() = Some(own);
    assert_eq!(inference().await, (Level::Simulated, CheckStatus::Pass));
    // Somebody in between: the enclave names its own key, the connection ends elsewhere.
    *named.lock().unwrap() = Some([9; 32]);
    assert_eq!(inference().await, (Level::Failed, CheckStatus::Fail));
    let dataset = folder.join("d.jsonl");
    std::fs::write(&dataset, "{\"prompt\":\"a\",\"completion\":\"b\"}\n").unwrap();
    let error = world
        .broker
        .fine_tuning
        .upload_dataset_to_tee(world.provider, &dataset, &UploadOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.code(), "verification_failed");
    assert!(error.to_string().contains("ends TLS"), "{error}");
    assert!(world.requests("/dataset").is_empty());
}

/// A proxy that ends TLS in front of the scripted provider; returns its URL.
async fn end_tls(world: &World, certificate: Vec<u8>, key: Vec<u8>) -> String {
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(certificate)],
            PrivateKeyDer::try_from(key).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let behind = world.url().strip_prefix("http://").unwrap().to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            tokio::spawn(async move {
                // A client that goes away in the middle ends its own connection only.
                if let (Ok(mut outside), Ok(mut inside)) = (
                    acceptor.accept(stream).await,
                    TcpStream::connect(behind).await,
                ) {
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                }
            });
        }
    });
    url
}

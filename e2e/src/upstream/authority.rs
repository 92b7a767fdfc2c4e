//! The private CA of a run and the one certificate of all its upstreams.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// Names that the upstreams' certificate is good for.
const NAMES: [&str; 8] = [
    "registry-1.docker.io",
    "auth.docker.io",
    "index.docker.io",
    "docker.io",
    "production.cloudflare.docker.com",
    "registry.test",
    "*.registry.test",
    "localhost",
];

/// Addresses that the certificate is good for, so that a trap cannot pass for a mere TLS failure.
const ADDRESSES: [[u8; 4]; 4] = [[127, 0, 0, 1], [169, 254, 169, 254], [10, 9, 8, 7], [192, 168, 77, 1]];

/// A CA made for this run, and the TLS configuration it signed.
#[derive(Debug)]
pub struct Authority {
    ca_pem: String,
    server: Arc<ServerConfig>,
}

impl Authority {
    /// Makes a new CA and one certificate for every name and address of the upstreams.
    pub fn new() -> Result<Self> {
        let issuer = issuer()?;
        let key = KeyPair::generate().context("failed to make the upstreams' key")?;
        let leaf = leaf_params()?.signed_by(&key, &issuer.1).context("failed to sign the upstreams' certificate")?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Self { ca_pem: issuer.0, server: server_config(leaf.der().clone(), key)? })
    }

    /// The CA's certificate.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The configuration with which the front ends TLS.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

fn issuer() -> Result<(String, Issuer<'static, KeyPair>)> {
    let mut params = CertificateParams::new(Vec::<String>::new()).context("no names")?;
    params.distinguished_name.push(DnType::CommonName, "Entrepot e2e upstreams");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().context("failed to make the CA's key")?;
    let pem = params.self_signed(&key).context("failed to sign the CA")?.pem();
    Ok((pem, Issuer::new(params, key)))
}

fn leaf_params() -> Result<CertificateParams> {
    let names: Vec<String> = NAMES.into_iter().map(str::to_owned).collect();
    let mut params = CertificateParams::new(names).context("failed to read the upstreams' names")?;
    let documentation = (1..=254).map(|last| Ipv4Addr::new(203, 0, 113, last));
    let addresses = documentation.chain(ADDRESSES.map(Ipv4Addr::from));
    let addresses = addresses.map(|address| SanType::IpAddress(IpAddr::V4(address)));
    params.subject_alt_names.extend(addresses);
    Ok(params)
}

fn server_config(leaf: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("failed to choose TLS versions")?
        .with_no_client_auth()
        .with_single_cert(vec![leaf], key)
        .context("failed to use the upstreams' certificate")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

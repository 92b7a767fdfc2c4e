//! Who is who in the cluster: one CA for servers and clients, and the files by which programs reach the apiserver.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use serde_json::json;

/// The group that may do everything.
pub const MASTERS: &str = "system:masters";

/// A certificate with its key, both in PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// The CA of one cluster.
#[derive(Debug)]
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new one.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new()).context("no names")?;
        params.distinguished_name.push(DnType::CommonName, "Entrepot e2e cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("cannot make the cluster's key")?;
        let pem = params.self_signed(&key).context("cannot sign the cluster's CA")?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    /// Its certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A server with these names and addresses.
    pub fn server(&self, names: &[&str], addresses: &[Ipv4Addr]) -> Result<Pair> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).context("a server's name is not one")?;
        params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress((*address).into())));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// A client that Kubernetes knows as `user`, in `group`.
    pub fn client(&self, user: &str, group: &str) -> Result<Pair> {
        let mut params = CertificateParams::new(Vec::<String>::new()).context("no names")?;
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// The file by which such a client reaches the apiserver at `url`.
    #[must_use]
    pub fn kubeconfig(&self, url: &str, client: &Pair) -> String {
        let base64 = |pem: &str| STANDARD.encode(pem);
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "entrepot",
                "cluster": { "server": url, "certificate-authority-data": base64(&self.pem) },
            }],
            "users": [{
                "name": "entrepot",
                "user": {
                    "client-certificate-data": base64(&client.certificate),
                    "client-key-data": base64(&client.key),
                },
            }],
            "contexts": [{ "name": "entrepot", "context": { "cluster": "entrepot", "user": "entrepot" } }],
            "current-context": "entrepot",
        })
        .to_string()
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Pair> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params.signed_by(&key, &self.issuer).context("cannot sign a certificate")?.pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }
}

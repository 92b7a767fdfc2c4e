//! The cache server's command line.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context;
use cache_server::{
    run::{Options, Reload, Running},
    settings::Sources,
    telemetry,
};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A pull-through container registry: fetches each image once and hands it on.
///
/// Without any option it mirrors Docker Hub on 127.0.0.1:5000 and keeps images in ./data.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// A YAML file, or a folder of them, with `RegistryMirror` and `CacheServer` objects. Default: one mirror of Docker Hub.
    #[arg(long, env = "ENTREPOT_CONFIG", value_name = "FILE|DIR")]
    config: Option<PathBuf>,
    /// The folder in which images are kept.
    #[arg(long, env = "ENTREPOT_DATA", value_name = "DIR", default_value = "./data")]
    data: PathBuf,
    /// The address and port to listen on.
    #[arg(long, env = "ENTREPOT_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:5000")]
    listen: SocketAddr,
    /// A folder with the Secrets that objects refer to, as files <secret>_<key>.
    #[arg(long, env = "ENTREPOT_SECRETS", value_name = "DIR")]
    secrets: Option<PathBuf>,
    /// A further address for /metrics, /livez and /readyz, which are on the main port too, and for /status, which is not.
    #[arg(long, env = "ENTREPOT_METRICS", value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// Leave out objects that have mistakes and serve the others; what was good before a change stays. Without it a mistake
    /// refuses the whole configuration. `--check` always lists every mistake.
    #[arg(long, env = "ENTREPOT_KEEP_GOING")]
    keep_going: bool,
    /// Check the configuration, list every mistake in it, and end.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let sources = Sources {
        config: arguments.config.clone(),
        secrets: arguments.secrets.clone(),
        main_port: Some(arguments.listen.port()),
    };
    let introduce = arguments.config.is_none();
    let options = Options {
        sources,
        data: arguments.data,
        listen: arguments.listen,
        metrics: arguments.metrics,
        keep_going: arguments.keep_going && !arguments.check,
    };
    let loaded = match options.load() {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::FAILURE;
        }
    };
    if arguments.check {
        println!("the configuration is good: {} repositories", loaded.settings.repositories().count());
        return ExitCode::SUCCESS;
    }
    let _log = telemetry::init();
    match serve(options, loaded, introduce) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: Options, loaded: cache_server::settings::Loaded, introduce: bool) -> anyhow::Result<()> {
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // A busy worker looks for new events often, so that small answers do not wait behind large transfers.
        .event_interval(8)
        // It takes no more events at once than its queue holds: what overflows goes into a queue that all share, and is looked
        // at late there (measured, see ARCHITECTURE.md).
        .max_io_events_per_tick(64)
        .global_queue_interval(4)
        .build()
        .context("failed to start the runtime")?;
    let ended = runtime.block_on(async {
        let data = options.data.clone();
        let running = Running::start(options, loaded).await?;
        if let (true, Some(address)) = (introduce, running.address()) {
            introduce_ourselves(address, &data);
        }
        let mut term = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
        let mut int = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
        let hangup = std::sync::Arc::new(tokio::sync::Mutex::new(
            signal(SignalKind::hangup()).context("failed to listen for SIGHUP")?,
        ));
        let stop = async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        };
        let reload = move || -> Reload {
            let hangup = std::sync::Arc::clone(&hangup);
            Box::pin(async move {
                hangup.lock().await.recv().await;
            })
        };
        running.until(stop, reload).await;
        Ok(())
    });
    // Fills that run are resumed by the next process.
    runtime.shutdown_background();
    ended
}

/// Raises the limit of open files as far as it goes: each connection and each blob being sent takes one.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Only means fewer connections if it fails.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn introduce_ourselves(address: SocketAddr, data: &std::path::Path) {
    println!(
        "Mirroring Docker Hub (docker.io) on http://{address}; images are kept in {}.
No configuration was given (--config); that is all there is to it. To try:

  curl 'http://{address}/v2/library/alpine/tags/list?n=5'
  skopeo copy --src-tls-verify=false docker://{address}/library/alpine:latest dir:alpine
  docker pull {address}/library/alpine

The second pull of an image comes from here. Metrics: http://{address}/metrics",
        data.display()
    );
}

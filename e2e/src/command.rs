//! Programs that run to their end: what they print is kept, and shown only when they fail.

use std::ffi::OsStr;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a program with arguments.
pub fn run<I, S>(program: &str, arguments: I) -> Result<()>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    finish(Command::new(program).args(arguments)).map(drop)
}

/// Runs a program and gives what it printed.
pub fn output<I, S>(program: &str, arguments: I) -> Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    finish(Command::new(program).args(arguments))
}

/// Runs a program with `input` on its standard input.
pub fn feed<I, S>(program: &str, arguments: I, input: &str) -> Result<()>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| cannot_start(&command))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("{} took no input", shown(&command)))?;
    }
    let output = child.wait_with_output().with_context(|| cannot_start(&command))?;
    judge(&command, &output).map(drop)
}

/// Runs a prepared command to its end and gives what it printed on standard output.
pub fn finish(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    judge(command, &output)
}

fn judge(command: &Command, output: &Output) -> Result<String> {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let err = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}):\n{out}{err}", shown(command), output.status);
    }
    Ok(out)
}

fn cannot_start(command: &Command) -> String {
    format!("cannot run `{}`; is it installed?", shown(command))
}

fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

use std::io::{self, IsTerminal, Read};
use std::time::Instant;

use serde::Serialize;
use tlkit::model::generate::{Generated, Generation, StopReason};
use tlkit::model::{Model, Session, device, generate};
use tlkit::text::{Message, TextStream, Vocabulary, load_prompts};
use tlkit::{Code, Error, Result};

use super::files::{blob_source, check_strict};
use crate::command::args::{Generate, Running};
use crate::command::output::{Outcome, Output, plural};
use crate::command::watch::Stop;

/// Longest prompt that is read from standard input, in bytes.
const MOST_INPUT: u64 = 16 << 20;

pub(super) fn open_session(args: &Running, output: &Output) -> Result<Session> {
    let device = device(Some(&args.device))?;
    let blobs = blob_source(&args.blobs);
    let vocabulary = Vocabulary::open(&args.model)?;
    let model = Model::open(&args.model, &device, args.compute_dtype)?;
    let model = model.with_renames(args.names.rename.clone());
    let adapter = args.adapter.as_deref();
    let session = Session::with(vocabulary, model, adapter, &*blobs)?;
    check_strict(
        args.whole.strict,
        &session.missing,
        adapter.unwrap_or(&args.model),
    )?;
    for note in &session.notes {
        output.note(note);
    }
    Ok(session)
}

#[derive(Serialize)]
struct Answer<'a> {
    prompt: &'a str,
    text: String,
    tokens: usize,
    prompt_tokens: usize,
    stopped: StopReason,
}

#[derive(Serialize)]
struct Report<'a> {
    generations: Vec<Answer<'a>>,
}

pub(crate) fn generate(args: &Generate, output: &Output) -> Result<Outcome> {
    let prompts = prompts(args)?;
    let session = open_session(&args.running, output)?;
    let encoded = prompts.iter().map(|p| encode(p, args.chat, &session));
    let encoded: Vec<Vec<u32>> = encoded.collect::<Result<_>>()?;
    let mut options = Generation::default();
    options.max_tokens = args.max_tokens;
    options.stop = session.vocabulary.eos().to_vec();
    let started = Instant::now();
    let streams = args.prompts.is_none() && !output.is_json();
    let stop = Stop::here();
    let mut answers = Vec::new();
    let (mut total, mut full) = (0, 0);
    let batch = usize::try_from(args.batch_size).unwrap_or(usize::MAX);
    for (texts, tokens) in prompts.chunks(batch).zip(encoded.chunks(batch)) {
        let results = if streams {
            stream(&session, tokens, &options, output)?
        } else {
            generate::generate(
                &session.model,
                &session.branches,
                tokens,
                &options,
                |_, _| stop.progress().check(),
            )?
        };
        for ((text, prompt), result) in texts.iter().zip(tokens).zip(&results) {
            total += result.tokens.len();
            full += usize::from(result.stopped == StopReason::MaxPositions);
            if streams {
                continue;
            }
            let answer = answer(&session, text, prompt, result)?;
            if output.is_json() {
                answers.push(answer);
            } else {
                output.print_json_line(&answer)?;
            }
        }
    }
    if output.is_json() {
        let report = Report {
            generations: answers,
        };
        output.report(&report, String::new)?;
    }
    tell(&session, total, full, started, output);
    Ok(Outcome::Success)
}

fn tell(session: &Session, tokens: usize, full: usize, started: Instant, output: &Output) {
    if full > 0 {
        let positions = session.model.config().max_positions;
        let texts = plural(full, "text");
        output.note(&format!("{texts} cut at the model's {positions} positions"));
    }
    if io::stderr().is_terminal() {
        let speed = tokens as f64 / started.elapsed().as_secs_f64().max(1e-9);
        output.note(&format!("{}, {speed:.1} tokens/s", plural(tokens, "token")));
    }
}

fn prompts(args: &Generate) -> Result<Vec<String>> {
    if let Some(path) = &args.prompts {
        return load_prompts(path);
    }
    if let Some(prompt) = &args.prompt {
        return Ok(vec![prompt.clone()]);
    }
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let message = "no prompt: give --prompt, --prompts, or text on standard input";
        return Err(Error::new(Code::Usage, message));
    }
    let mut text = String::new();
    let read = stdin.lock().take(MOST_INPUT + 1).read_to_string(&mut text);
    let n = read.map_err(|e| Error::io("-", "read standard input", e))?;
    if n as u64 > MOST_INPUT {
        let message = format!("standard input has more than {MOST_INPUT} bytes");
        return Err(Error::new(Code::Usage, message));
    }
    // A shell's last newline is no part of what is to be continued.
    let length = text.trim_end_matches(['\n', '\r']).len();
    text.truncate(length);
    Ok(vec![text])
}

fn encode(prompt: &str, chat: bool, session: &Session) -> Result<Vec<u32>> {
    let positions = session.model.config().max_positions;
    if !chat {
        return session.vocabulary.encode_prompt_start(prompt, positions);
    }
    let message = Message {
        role: "user".to_owned(),
        content: prompt.to_owned(),
    };
    let text = session.vocabulary.render(&[message], true)?;
    session.vocabulary.encode_prompt_start(&text, positions)
}

fn stream(
    session: &Session,
    prompts: &[Vec<u32>],
    options: &Generation,
    output: &Output,
) -> Result<Vec<Generated>> {
    let prompt = prompts.first().map(Vec::as_slice).unwrap_or_default();
    let mut text = TextStream::new(&session.vocabulary, prompt);
    let stop = Stop::here();
    let on_token = |_, token| {
        stop.progress().check()?;
        match text.push(token)? {
            Some(part) => output.print_data(&part),
            None => Ok(()),
        }
    };
    let result = generate::generate(
        &session.model,
        &session.branches,
        prompts,
        options,
        on_token,
    )?;
    let last = text.finish()?.unwrap_or_default();
    output.print_data(&format!("{last}\n"))?;
    Ok(result)
}

fn answer<'a>(
    session: &Session,
    prompt: &'a str,
    encoded: &[u32],
    result: &Generated,
) -> Result<Answer<'a>> {
    Ok(Answer {
        prompt,
        text: generate::text(&session.vocabulary, encoded, &result.tokens)?,
        tokens: result.tokens.len(),
        prompt_tokens: encoded.len(),
        stopped: result.stopped,
    })
}

//! A peer in the middle: two nodes, each of which takes it for the other one. It has the keys of both, hears all that they
//! say, and says something else where the test wants it. Commitments stay true to it: their signatures cover neither
//! onions nor failures.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use millrace_wire::noise::{BODY_TAG_BYTES, Decryptor, Encryptor, LENGTH_HEADER_BYTES};
use millrace_wire::{Decoded, Message, PublicKey};
use secp256k1::{SECP256K1, SecretKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::wild::Wild;

/// Whom a message is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// The node that calls.
    Left,
    /// The node that is called.
    Right,
}

/// What is said instead of a message.
pub type Script = Box<dyn FnMut(To, Message) -> Vec<(To, Message)> + Send>;

pub struct Tap {
    /// Where the left node finds the right one.
    pub address: SocketAddr,
    inner: Arc<Inner>,
    listening: JoinHandle<()>,
}

struct Inner {
    left: SecretKey,
    right: SecretKey,
    right_at: SocketAddr,
    script: Mutex<Option<Script>>,
    heard: Mutex<Vec<(To, Message)>>,
    said: Mutex<Vec<(To, Message)>>,
    is_open: AtomicBool,
    line: Mutex<Option<Line>>,
}

struct Line {
    mouths: Weak<Mouths>,
    task: JoinHandle<()>,
}

struct Mouths {
    left: tokio::sync::Mutex<Mouth>,
    right: tokio::sync::Mutex<Mouth>,
}

struct Mouth {
    socket: OwnedWriteHalf,
    encryptor: Encryptor,
}

impl Tap {
    /// Between a node that will call, and one that listens.
    pub async fn between(left: SecretKey, right: SecretKey, right_at: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            left,
            right,
            right_at,
            script: Mutex::default(),
            heard: Mutex::default(),
            said: Mutex::default(),
            is_open: AtomicBool::new(true),
            line: Mutex::default(),
        });
        let listening = tokio::spawn(Arc::clone(&inner).listen(listener));
        Self { address, inner, listening }
    }

    pub fn right_id(&self) -> PublicKey {
        self.inner.right.public_key(SECP256K1)
    }

    /// From now on this is said instead of what is heard.
    pub fn rewrite(&self, script: impl FnMut(To, Message) -> Vec<(To, Message)> + Send + 'static) {
        *self.inner.script.lock().unwrap() = Some(Box::new(script));
    }

    /// From now on everything passes as it is.
    pub fn pass(&self) {
        *self.inner.script.lock().unwrap() = None;
    }

    /// What both have said, from some place on.
    pub fn heard(&self, from: usize) -> Vec<(To, Message)> {
        self.inner.heard.lock().unwrap()[from..].to_vec()
    }

    /// What both were told, from some place on.
    pub fn said(&self, from: usize) -> Vec<(To, Message)> {
        self.inner.said.lock().unwrap()[from..].to_vec()
    }

    /// How much was heard, and told.
    pub fn mark(&self) -> (usize, usize) {
        (self.inner.heard.lock().unwrap().len(), self.inner.said.lock().unwrap().len())
    }

    /// Says something of its own.
    pub async fn say(&self, to: To, message: &Message) {
        self.inner.tell(&self.mouths(), to, message).await;
    }

    /// The same of bytes that need not be a message.
    pub async fn say_bytes(&self, to: To, plain: &[u8]) {
        self.mouths().say(to, plain).await;
    }

    fn mouths(&self) -> Arc<Mouths> {
        let line = self.inner.line.lock().unwrap();
        line.as_ref().and_then(|line| line.mouths.upgrade()).expect("both are connected")
    }

    /// Hangs up, and answers no more.
    pub fn close(&self) {
        self.inner.is_open.store(false, Ordering::SeqCst);
        self.hang_up();
    }

    /// Hangs up.
    pub fn hang_up(&self) {
        if let Some(line) = self.inner.line.lock().unwrap().take() {
            line.task.abort();
        }
    }

    /// Answers again.
    pub fn open(&self) {
        self.inner.is_open.store(true, Ordering::SeqCst);
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.listening.abort();
        self.hang_up();
    }
}

impl Inner {
    async fn listen(self: Arc<Self>, listener: TcpListener) {
        while let Ok((socket, _)) = listener.accept().await {
            if !self.is_open.load(Ordering::SeqCst) {
                continue;
            }
            let (mouths, mouths_of) = tokio::sync::oneshot::channel();
            let task = tokio::spawn(Arc::clone(&self).serve(socket, mouths));
            if let Ok(mouths) = mouths_of.await {
                let before = self.line.lock().unwrap().replace(Line { mouths, task });
                if let Some(before) = before {
                    before.task.abort();
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, socket: TcpStream, started: tokio::sync::oneshot::Sender<Weak<Mouths>>) {
        let left = Wild::answer(socket, self.right).await;
        let right = Wild::call_at(self.right_at, self.right.public_key(SECP256K1), self.left).await;
        let (left_ear, left_mouth, left_decryptor) = halves(left);
        let (right_ear, right_mouth, right_decryptor) = halves(right);
        let mouths =
            Arc::new(Mouths { left: tokio::sync::Mutex::new(left_mouth), right: tokio::sync::Mutex::new(right_mouth) });
        let _gone = started.send(Arc::downgrade(&mouths));
        tokio::select! {
            () = self.pass_on(&mouths, To::Right, left_ear, left_decryptor) => {}
            () = self.pass_on(&mouths, To::Left, right_ear, right_decryptor) => {}
        }
    }

    async fn pass_on(&self, mouths: &Mouths, to: To, mut ear: OwnedReadHalf, mut decryptor: Decryptor) {
        while let Some(plain) = hear(&mut ear, &mut decryptor).await {
            let Ok(Decoded::Message(message)) = Message::decode(&plain) else {
                mouths.say(to, &plain).await;
                continue;
            };
            self.heard.lock().unwrap().push((to, message.clone()));
            let instead = match self.script.lock().unwrap().as_mut() {
                Some(script) => script(to, message),
                None => vec![(to, message)],
            };
            for (to, message) in instead {
                self.tell(mouths, to, &message).await;
            }
        }
    }

    async fn tell(&self, mouths: &Mouths, to: To, message: &Message) {
        self.said.lock().unwrap().push((to, message.clone()));
        let mut plain = Vec::new();
        message.encode(&mut plain).unwrap();
        mouths.say(to, &plain).await;
    }
}

impl Mouths {
    async fn say(&self, to: To, plain: &[u8]) {
        let mut mouth = match to {
            To::Left => self.left.lock().await,
            To::Right => self.right.lock().await,
        };
        let mut sealed = Vec::new();
        mouth.encryptor.encrypt(plain, &mut sealed).unwrap();
        // A node that has hung up is what some tests want.
        let _gone = mouth.socket.write_all(&sealed).await;
    }
}

fn halves(wild: Wild) -> (OwnedReadHalf, Mouth, Decryptor) {
    let Wild { socket, encryptor, decryptor } = wild;
    let (ear, socket) = socket.into_split();
    (ear, Mouth { socket, encryptor }, decryptor)
}

async fn hear(ear: &mut OwnedReadHalf, decryptor: &mut Decryptor) -> Option<Vec<u8>> {
    let mut header = [0; LENGTH_HEADER_BYTES];
    ear.read_exact(&mut header).await.ok()?;
    let length = usize::from(decryptor.decrypt_length(&header).ok()?);
    let mut body = vec![0; length + BODY_TAG_BYTES];
    ear.read_exact(&mut body).await.ok()?;
    decryptor.decrypt_body(&mut body).ok()?;
    Some(body)
}

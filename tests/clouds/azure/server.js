// An Azure blob server (Azurite) in memory, on a free port of loopback, with a container `fleet`: prints its port, and ends with
// its standard input.
//
//     node tests/clouds/azure/server.js target/azure-server
"use strict";
const crypto = require("crypto");
const http = require("http");
const net = require("net");
const path = require("path");

// Those of every emulator of Azure's storage.
const ACCOUNT = "devstoreaccount1";
const KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

function makeContainer(port) {
  const date = new Date().toUTCString();
  const headers = { "x-ms-date": date, "x-ms-version": "2021-12-02" };
  const canonical = Object.keys(headers).map((name) => `${name}:${headers[name]}\n`).join("");
  const text = `PUT\n\n\n\n\n\n\n\n\n\n\n\n${canonical}/${ACCOUNT}/${ACCOUNT}/fleet\nrestype:container`;
  const signature = crypto.createHmac("sha256", Buffer.from(KEY, "base64")).update(text, "utf8").digest("base64");
  const options = {
    host: "127.0.0.1", port, method: "PUT", path: `/${ACCOUNT}/fleet?restype=container`,
    headers: { ...headers, Authorization: `SharedKey ${ACCOUNT}:${signature}`, "Content-Length": 0 },
  };
  return new Promise((done, failed) => {
    const request = http.request(options, (answer) => {
      answer.resume();
      answer.statusCode === 201 ? done() : failed(new Error(`container: ${answer.statusCode}`));
    });
    request.on("error", failed);
    request.end();
  });
}

const probe = net.createServer().listen(0, "127.0.0.1", () => {
  const { port } = probe.address();
  probe.close(() => {
    // In this process, so that nothing outlives it.
    const main = path.resolve(process.argv[2], "node_modules/azurite/dist/src/blob/main.js");
    const args = ["--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck", "--blobHost", "127.0.0.1", "--blobPort", String(port)];
    const print = console.log;
    console.log = () => {};
    process.argv = [process.argv[0], main, ...args];
    require(main);
    const end = (status) => process.exit(status);
    process.stdin.on("end", () => end(0)).resume();
    const attempt = (left) => makeContainer(port).then(
      () => print(port),
      (e) => (left ? setTimeout(attempt, 200, left - 1) : (console.error(e.message), end(1))),
    );
    attempt(100);
  });
});

"""Videos over HTTP: a durable queue, one worker, OpenAI's videos API, and a page. Needs the extra `server`."""

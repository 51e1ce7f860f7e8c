"""The door: clients of OpenAI's interface drive both machines. The only package that listens."""

"""Who serves a request, of several replicas: routers, pure, as data over scorers (`catalog`)."""

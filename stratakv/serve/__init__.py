"""Many users at once over one packed cache: the engine (requests, scheduler, pages, sampling) and the HTTP API over it."""

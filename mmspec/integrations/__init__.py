"""mmspec inside other libraries: thin, each file for one of them, imported only when asked for."""

